"""Models, schedulers and pipelines of the library diffusers, with the same guidance. It needs the extra `diffusers`."""

from typing import TYPE_CHECKING, Any

import lazy_loader

from sag.diffusers.extras import require

if TYPE_CHECKING:
    from sag.diffusers.attention import Request as Request
    from sag.diffusers.attention import prepare as prepare
    from sag.diffusers.denoiser import DiffusersDenoiser as DiffusersDenoiser
    from sag.diffusers.loading import load_denoiser as load_denoiser
    from sag.diffusers.networks import LatentCondition as LatentCondition
    from sag.diffusers.pipeline import SelfAttentionGuidancePipeline as SelfAttentionGuidancePipeline
    from sag.diffusers.schedules import SchedulerSampler as SchedulerSampler

_load, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attention": ["Request", "prepare"],
        "denoiser": ["DiffusersDenoiser"],
        "loading": ["load_denoiser"],
        "networks": ["LatentCondition"],
        "pipeline": ["SelfAttentionGuidancePipeline"],
        "schedules": ["SchedulerSampler"],
    },
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        require(f"{__name__}.{name}")  # one sentence, before the import that would fail
    return _load(name)
