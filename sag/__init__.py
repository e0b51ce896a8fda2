"""Self-Attention Guidance and its family for pretrained diffusion models."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["build", "sampling"], {"build": ["compose"]})
