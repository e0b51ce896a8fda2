"""A page in the browser on which a model is compared with itself: the same noise, with SAG off and on."""
