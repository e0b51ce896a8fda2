"""Guidance in one sentence: compare the prediction with a weaker one, and move away from the weaker one.

    eps_guided = eps + sum_i s_i (eps_i - eps_weak_i)

eps_i is eps itself, or the unconditional prediction for techniques that work on that branch. A guided denoiser is a denoiser
again. s_i = 0 is exactly off: no extra pass, bit-equal output. Where the diffusion's `delta_space` is the output, as it is for
networks that predict a velocity (v or flow), or the schedule ends without signal, the sum is taken over the network's outputs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sag.diffusion import Condition, DenoiserLike, GaussianDiffusion, Memory, Prediction, Schedule
from sag.guidance.base import DifferenceTransform, Guidance, GuidanceState, Random, ScoreGuidance, WeakGuidance
from sag.models import Attend, Attention, AttentionLayer


class GuidedDenoiser:
    """A denoiser with any number of techniques. It is called like a denoiser, so guided denoisers can be nested.

    Args:
        denoiser: The inner denoiser.
        guidance: The techniques. Their differences are summed; then transforms change the sum, in the given order.
        random: The source of random numbers for techniques.
        batched: Whether questions that do not depend on each other are asked in one batch. This is faster on a large GPU, but
            needs more memory and rounds differently.

    Raises:
        ValueError: If a technique does not fit the denoiser (unknown layer, no null class, ...), or `batched` is used with a
            guided inner denoiser, whose memory and random numbers belong to the samples of one question.
    """

    def __init__(
        self, denoiser: DenoiserLike, guidance: Sequence[Guidance], random: Random | None = None, *, batched: bool = False
    ) -> None:
        for g in guidance:
            g.check(denoiser)
        if batched and isinstance(denoiser, GuidedDenoiser):
            raise ValueError("batched=True needs an unguided inner denoiser; give all techniques to one GuidedDenoiser")
        self.denoiser = denoiser
        self.guidance = tuple(guidance)
        self.batched = batched
        self._random = random
        self._passes: dict[tuple[int, int, int], list[int]] = {}

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion of the inner denoiser."""
        return self.denoiser.diffusion

    @property
    def attention_layers(self) -> Mapping[str, AttentionLayer]:
        """The attention layers of the inner denoiser."""
        return self.denoiser.attention_layers

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the inner denoiser's samples."""
        return self.denoiser.shape

    @property
    def num_classes(self) -> int | None:
        """Number of labels of the inner denoiser."""
        return self.denoiser.num_classes

    def condition(
        self, labels: Tensor | None = None, low_res: Tensor | None = None, texts: Sequence[str] | None = None
    ) -> Condition:
        """Return what the denoiser within is told of samples."""
        return self.denoiser.condition(labels, low_res, texts)

    def respace(self, steps: int | str | Schedule) -> "GuidedDenoiser":
        """Return the same techniques with the inner denoiser respaced."""
        within = self.denoiser.respace(steps)
        return self if within is self.denoiser else GuidedDenoiser(within, self.guidance, self._random, batched=self.batched)

    def decode(self, x_0: Tensor) -> Tensor:
        """Turn samples into images, as the inner denoiser does."""
        return self.denoiser.decode(x_0)

    def active(self, t: int) -> list[Guidance]:
        """Return the techniques that are on at step t."""
        time = float(self.diffusion.schedule.time[t])
        return [g for g in self.guidance if g.active(time)]

    def passes(self, t: int, shape: tuple[int, int, int] | None = None) -> int:
        """Count the network's passes at step t of a trajectory.

        They are counted in a trajectory on torch's meta device, where nothing is computed. Techniques that read values cannot
        run there; they run on zeros. Steps with the same techniques are counted once, unless a technique remembers something.

        Args:
            t: The step, an index of the schedule.
            shape: (C, H, W) of the samples; by default the denoiser's own.
        """
        shape = shape or self.shape
        if shape not in self._passes:
            try:
                self._passes[shape] = self._count(shape, torch.device("meta"))
            except (RuntimeError, TypeError):
                self._passes[shape] = self._count(shape, torch.device("cpu"))
        return self._passes[shape][t] * (self.denoiser.passes(t, shape) if isinstance(self.denoiser, GuidedDenoiser) else 1)

    def _count(self, shape: tuple[int, int, int], device: torch.device) -> list[int]:
        stand_in = _StandIn(self.denoiser)
        techniques = [g for g in self.guidance if isinstance(g, WeakGuidance)]
        guided = GuidedDenoiser(stand_in, techniques, lambda t, size: torch.zeros(1, *size, device=device))
        x_t, memory = torch.zeros(1, *shape, device=device), Memory()
        condition = Condition(torch.zeros(1, dtype=torch.int64, device=device), null_label=0)
        counts: list[int] = []
        known: dict[tuple[Guidance, ...], int] = {}  # the passes of steps without memory, by active techniques
        for t in reversed(range(len(self.diffusion.schedule))):
            active, asked = tuple(guided.active(t)), stand_in.asked
            if active not in known or memory.own:
                memory = guided(x_t, t, condition, memory=memory).memory
                known[active] = stand_in.asked - asked
            counts.append(known[active])
        return counts[::-1]

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        condition: Condition | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        memory: Memory | None = None,
    ) -> Prediction:
        """Predict the noise in x_t, with guidance.

        eps, x_0 and score are guided. The log-variance and the attentions are those of the first pass.

        Args:
            x_t: See `Denoiser.__call__`.
            t: See `Denoiser.__call__`.
            condition: What the inner denoiser is told.
            capture: See `UNet.forward`. It applies to the first pass.
            attend: See `UNet.forward`. It applies to the first pass.
            memory: What the previous step passed on.
        """
        active = self.active(t)
        state = GuidanceState(self.denoiser, x_t, t, condition, active, capture, attend, self._random, memory, self.batched)
        first = state.prediction("cond")
        guided, score = _summand(first, state), first.score
        for g in active:
            if isinstance(g, WeakGuidance):
                strong = state.prediction(g.branch)
                guided = guided + g.scale_at(state.time) * (_summand(strong, state) - _summand(state.weak(g), state))
            elif isinstance(g, ScoreGuidance):
                score = g.score(state) if score is None else score + g.score(state)
        transforms = [g for g in active if isinstance(g, DifferenceTransform)]
        if not any(isinstance(g, WeakGuidance) for g in active):
            eps, x_0 = first.eps, first.x_0
        elif first.x_0 is None and not transforms:
            eps, x_0 = guided, None
        else:
            eps, x_0 = _resolved(guided, first, state)
            if transforms:
                clean = _resolved(_summand(first, state), first, state)[1]
                for g in transforms:
                    x_0 = clean + g.transform(state, clean, x_0 - clean)
                eps = state.diffusion.eps_from_x0(x_t, t, x_0)
            x_0 = None if first.x_0 is None else x_0
        return replace(first, eps=eps, x_0=x_0, score=score, memory=state.memory)


def _summand(prediction: Prediction, state: GuidanceState) -> Tensor:
    """Return what is summed: eps, or the network's output if the prediction has x_0, since that is valid without signal too."""
    if prediction.x_0 is None:
        return prediction.eps
    return state.diffusion.target(prediction.x_0, prediction.eps, state.t)


def _resolved(summand: Tensor, first: Prediction, state: GuidanceState) -> tuple[Tensor, Tensor]:
    """Convert a sum of `_summand`s into eps and x_0."""
    if first.x_0 is None:
        return summand, state.diffusion.x0_from_eps(state.x_t, state.t, summand)
    return state.diffusion.resolve(summand, state.x_t, state.t)


class _StandIn:
    """Replaces a denoiser, computes nothing, and counts how often it is called."""

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.diffusion, self.shape = denoiser.diffusion, denoiser.shape
        self.attention_layers, self.num_classes = denoiser.attention_layers, denoiser.num_classes
        self.asked = 0

    def condition(
        self, labels: Tensor | None = None, low_res: Tensor | None = None, texts: Sequence[str] | None = None
    ) -> Condition:
        raise NotImplementedError

    def respace(self, steps: int | str | Schedule) -> "_StandIn":
        raise NotImplementedError

    def decode(self, x_0: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        condition: Condition | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        memory: Memory | None = None,
    ) -> Prediction:
        self.asked += 1
        attention = {}
        for name in capture:
            layer = self.attention_layers[name]
            qkv = torch.zeros(len(x_t), layer.heads, layer.resolution**2, layer.channels // layer.heads, device=x_t.device)
            attention[name] = Attention(qkv, qkv, qkv, (layer.resolution, layer.resolution))
        return Prediction(x_t, attention=attention, x_0=x_t if self.diffusion.carries_x0 else None)
