"""Studies: rows that are sampled and scored, the results of all of them, and their tables, plots and page."""
