"""Guidance by labels: a noisy-image classifier's gradient, and classifier-free guidance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sag.diffusion import Denoiser, DenoiserLike
from sag.guidance.base import NEEDS_NULL, GuidanceState, Scale, ScoreGuidance, WeakGuidance
from sag.guidance.batch import Question
from sag.models import Classifier


class ClassifierGuidance(ScoreGuidance):
    """The gradient of a classifier's log p(y | x_t) (arXiv:2105.05233, section 4).

    scale: the paper's gradient scale. classifier: on the device of the images. interval: see `Guidance`.
    """

    def __init__(self, classifier: Classifier, scale: Scale, interval: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(scale, interval)
        self.classifier = classifier

    def score(self, state: GuidanceState) -> Tensor:
        """See `ScoreGuidance`.

        Raises:
            ValueError: no labels, or images of another shape than the classifier's.
        """
        condition = state.condition("cond")
        if condition is None or condition.labels is None:
            raise ValueError("classifier guidance needs labels; with labels=none there is no class to guide to")
        with torch.enable_grad():
            x = state.x_t.detach().requires_grad_()
            tau = torch.full((len(x),), state.diffusion.schedule.tau[state.t], dtype=torch.float32, device=x.device)
            log_p = self.classifier(x, tau).log_softmax(dim=-1)
            (gradient,) = torch.autograd.grad(log_p.gather(1, condition.labels[:, None]).sum(), x)
        return self.scale_at(state.time) * gradient


class ClassifierFreeGuidance(WeakGuidance):
    """Guidance away from the unconditional prediction of the same network (arXiv:2207.12598, Eq. 6).

    scale: the paper's w; the convention of Stable Diffusion and DiT is 1 + scale. interval: see `Guidance`.
    """

    needs_uncond = True

    def __init__(self, scale: Scale, interval: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(scale, interval)

    def check(self, denoiser: DenoiserLike) -> None:
        """Raise a ValueError for a network without a null class. (Of other denoisers only the condition tells.)"""
        if isinstance(denoiser, Denoiser) and denoiser.null_label is None:
            raise ValueError(f"classifier-free guidance {NEEDS_NULL}")

    def question(self, state: GuidanceState) -> Question:
        """The one of the unconditional branch, which is asked once for all."""
        return state.question("uncond")
