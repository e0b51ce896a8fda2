"""From configs to objects. Only this package of the library knows Hydra, and no other package of the library imports it."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from sag.build.composing import compose as compose
    from sag.build.composing import identity as identity
    from sag.build.composing import out_folder as out_folder
    from sag.build.composing import register as register
    from sag.build.objects import denoiser as denoiser
    from sag.build.objects import guidance as guidance
    from sag.build.objects import job as job
    from sag.build.objects import network as network
    from sag.build.objects import outline as outline
    from sag.build.sample_config import SampleConfig as SampleConfig

__getattr__, __dir__, __all__ = lazy_loader.attach(  # composing needs no torch, which takes a second to import
    __name__,
    submod_attrs={
        "composing": ["compose", "identity", "out_folder", "register"],
        "objects": ["denoiser", "guidance", "job", "network", "outline"],
        "sample_config": ["SampleConfig"],
    },
)
