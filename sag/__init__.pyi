from sag import build as build
from sag import sampling as sampling
from sag.build import compose as compose

__version__: str
