"""Self-Attention Guidance and its companions for pretrained diffusion models (arXiv:2210.00939)."""

__version__ = "0.1.0"
