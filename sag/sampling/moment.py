"""What Self-Attention Guidance sees and does at some steps of a run, as arrays."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sag.data import Images
from sag.data.tensors import quantise
from sag.diffusion import Condition, DenoiserLike
from sag.guidance import GuidanceState, SelfAttentionGuidance
from sag.noise import SampleNoise
from sag.sampling.job import Job


@dataclass(frozen=True)
class Moment:
    """A step as SAG sees it, for n samples.

    Attributes:
        time: t / T.
        clean: (n, H, W, 3) uint8, the predicted clean image; for a model of latents, decoded.
        mask: (n, H, W) bool, where the clean image (for a model of latents, the clean latent) is blurred.
        degraded: (n, H, W, 3) uint8, what SAG makes of the clean image.
        difference: (n, H, W) float32, the root mean square over channels of eps - eps_weak.
    """

    time: float
    clean: Images
    mask: NDArray[np.bool_]
    degraded: Images
    difference: NDArray[np.float32]


@torch.no_grad()
def moments(job: Job, layers: Sequence[str] | None = None, count: int = 10) -> dict[str, list[Moment]]:
    """Sample, and return what SAG sees at some of the steps.

    Example:
        >>> import sag
        >>> job = sag.build.job(sag.compose("sample", ["indices=[3]", "sampler.steps=4", "device=cpu"]))
        >>> [moment.mask.shape for moment in sag.sampling.moments(job, ["middle"], count=2)["middle"]]
        [(1, 32, 32), (1, 32, 32)]

    Args:
        job: The samples; all of them are made at once.
        layers: The attention layers whose masks are shown; None is the layer of the job's SAG.
        count: How many steps, evenly spread from the first to the last.

    Returns:
        The moments by layer, in the order of the steps.

    Raises:
        ValueError: If the job has no SAG, a layer does not exist, or count is less than 1.
    """
    _lenses(job, layers)  # what cannot be seen is refused before anything is sampled
    wanted = moment_steps(job, count)
    return observe(job, {step.t: x_t for x_t, step in job.trajectory(range(len(job.indices))) if step.t in wanted}, layers)


def moment_steps(job: Job, count: int) -> set[int]:
    """Return `count` steps t of a job, evenly spread from the first to the last.

    Raises:
        ValueError: If count is less than 1.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"moments must be at least 1, got {count!r}")
    steps = len(job.sampler.respace(job.denoiser).diffusion.schedule)
    return set(np.linspace(steps - 1, 0, min(count, steps)).round().astype(int).tolist())


@torch.no_grad()
def observe(job: Job, states: Mapping[int, Tensor], layers: Sequence[str] | None = None) -> dict[str, list[Moment]]:
    """Return what SAG sees at steps of a trajectory that is sampled already.

    Args:
        job: All its samples were made at once.
        states: x_t (N, C, H, W) of the steps t, as `Job.trajectory` yields them.
        layers: See `moments`.

    Raises:
        ValueError: If the job has no SAG, or a layer does not exist.
    """
    lenses, denoiser = _lenses(job, layers), job.sampler.respace(job.denoiser)
    condition = job.condition(range(len(job.indices)))
    noise = SampleNoise(job.seed, job.indices, job.shape, job.device)
    return {
        layer: [_observe(denoiser, lens, x_t, t, condition, noise) for t, x_t in states.items()]
        for layer, lens in lenses.items()
    }


def _lenses(job: Job, layers: Sequence[str] | None) -> dict[str, SelfAttentionGuidance]:
    """Return the job's SAG as it reads each of the layers."""
    own = next((g for g in job.guidance if isinstance(g, SelfAttentionGuidance)), None)
    if own is None:
        raise ValueError("there is nothing to see without SAG; add sag to guidance=[...]")
    lenses = {layer: _through(own, layer) for layer in layers or [own.layer]}
    for lens in lenses.values():
        lens.check(job.denoiser)
    return lenses


def _through(sag: SelfAttentionGuidance, layer: str) -> SelfAttentionGuidance:
    """Return the same technique, reading another layer."""
    other = copy.copy(sag)
    other.layer = layer
    other.capture = (layer,) if sag.capture else ()
    return other


def _observe(
    denoiser: DenoiserLike, sag: SelfAttentionGuidance, x_t: Tensor, t: int, condition: Condition, noise: SampleNoise
) -> Moment:
    """Return what `sag` does at x_t, even where its interval turns it off."""
    state = GuidanceState(denoiser, x_t, t, condition, [sag], random=noise.mask)
    eps = state.prediction(sag.branch).eps
    clean, blurred = sag.clean_and_blurred(state)
    mask = sag.mask(state, clean, blurred)
    images = denoiser.decode(clean)
    size = (images.shape[2], images.shape[3])
    x_t_weak = sag.degrade(state)
    weak = denoiser(x_t_weak, t, state.condition(sag.branch)).eps
    if denoiser.diffusion.schedule.signal[t] > 0:
        degraded = denoiser.diffusion.x0_from_eps(x_t_weak, t, eps)
    else:  # x_t is noise alone, and the image that was blended is not in it
        degraded = torch.where(F.interpolate(mask[:, None].float(), clean.shape[2:], mode="nearest") > 0.5, blurred, clean)
    return Moment(
        float(denoiser.diffusion.schedule.time[t]),
        _rgb(images),
        _enlarged(mask.float(), size) > 0.5,
        _rgb(denoiser.decode(degraded)),
        _enlarged((eps - weak).square().mean(1).sqrt(), size),
    )


def _enlarged(x: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return maps (n, h, w) in the size of the images."""
    return F.interpolate(x[:, None], size, mode="nearest")[:, 0].cpu().numpy()


def _rgb(x: Tensor) -> Images:
    """Return images (N, C, H, W) in [-1, 1] as pictures: the first three channels, or the first one in grey."""
    return quantise(x[:, :3] if x.shape[1] >= 3 else x[:, :1])
