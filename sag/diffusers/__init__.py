"""Models, schedulers and pipelines of the library diffusers, with the same guidance. It needs the extra `diffusers`."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from sag.diffusers.attention import Request as Request
    from sag.diffusers.attention import prepare as prepare
    from sag.diffusers.schedules import SchedulerSampler as SchedulerSampler

__getattr__, __dir__, __all__ = (
    lazy_loader.attach(  # so that a missing library is a sentence, and costs nothing if not asked for
        __name__,
        submod_attrs={
            "attention": ["Request", "prepare"],
            "schedules": ["SchedulerSampler"],
        },
    )
)
