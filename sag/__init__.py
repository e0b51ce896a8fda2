"""Self-Attention Guidance and its family for pretrained diffusion models."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from sag import build as build
    from sag import sampling as sampling
    from sag.build import compose as compose

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["build", "sampling"], {"build": ["compose"]})
