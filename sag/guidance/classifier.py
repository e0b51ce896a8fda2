"""Guidance by labels: the gradient of a classifier of noisy images, and classifier-free guidance."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from sag.diffusion import Denoiser, DenoiserLike, Prediction
from sag.guidance.base import NEEDS_NULL, GuidanceState, Scale, ScoreGuidance, WeakGuidance
from sag.guidance.batch import Question
from sag.models import Classifier


class ClassifierGuidance(ScoreGuidance):
    """Guidance by the gradient of a classifier's log p(y | x_t) (arXiv:2105.05233, section 4).

    Args:
        classifier: The classifier, on the device of the images.
        scale: The paper's gradient scale.
        interval: See `Guidance`.
    """

    def __init__(self, classifier: Classifier, scale: Scale, interval: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(scale, interval)
        self.classifier = classifier

    @override
    def score(self, state: GuidanceState) -> Tensor:
        condition = state.condition("cond")
        if condition is None or condition.labels is None:
            raise ValueError("classifier guidance needs labels; with labels=none there is no class to guide towards")
        with torch.enable_grad():
            x = state.x_t.detach().requires_grad_()
            tau = torch.full((len(x),), state.diffusion.schedule.tau[state.t], dtype=torch.float32, device=x.device)
            log_p = self.classifier(x, tau).log_softmax(dim=-1)
            (gradient,) = torch.autograd.grad(log_p.gather(1, condition.labels[:, None]).sum(), x)
        return self.scale_at(state.time) * gradient


class ClassifierFreeGuidance(WeakGuidance):
    """Guidance away from the unconditional prediction of the same network (arXiv:2207.12598, Eq. 6).

    Args:
        scale: The paper's w. Stable Diffusion and DiT call 1 + w the scale.
        interval: See `Guidance`.
        channels: How many channels are guided: the first 3, as in the programs of DiT and SiT, whose latents have 4; or "all".

    Raises:
        ValueError: If an argument is outside its range.
    """

    needs_uncond = True

    def __init__(self, scale: Scale, interval: Sequence[float] = (0.0, 1.0), channels: int | Literal["all"] = "all") -> None:
        super().__init__(scale, interval)
        if channels != "all" and (not isinstance(channels, int) or channels < 1):
            raise ValueError(f"channels must be a number of channels or all, got {channels!r}")
        self.channels = channels

    @override
    def check(self, denoiser: DenoiserLike) -> None:
        # Other denoisers know no null class; GuidanceState checks their condition instead
        if isinstance(denoiser, Denoiser) and denoiser.null_label is None:
            raise ValueError(f"classifier-free guidance {NEEDS_NULL}")
        if self.channels != "all" and self.channels > denoiser.shape[0]:
            raise ValueError(
                f"channels={self.channels} of classifier-free guidance is more than the model's {denoiser.shape[0]}"
            )

    @override
    def question(self, state: GuidanceState) -> Question:
        return state.question("uncond")

    @override
    def weak(self, state: GuidanceState, answer: Prediction | None) -> Prediction:
        weak = super().weak(state, answer)
        if self.channels == "all":
            return weak
        strong, guided = state.prediction(self.branch), self.channels
        eps = torch.cat([weak.eps[:, :guided], strong.eps[:, guided:]], dim=1)
        if weak.x_0 is None or strong.x_0 is None:
            return replace(weak, eps=eps)
        return replace(weak, eps=eps, x_0=torch.cat([weak.x_0[:, :guided], strong.x_0[:, guided:]], dim=1))
