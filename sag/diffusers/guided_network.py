"""What a pipeline of the library diffusers finds in place of its network while it is guided."""

import copy
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import DiTPipeline
from torch import Tensor
from typing_extensions import override

from sag.diffusers.attention import Request
from sag.diffusers.denoiser import DeltaSpace, latent_channels
from sag.diffusers.schedules import SchedulerSteps, read_steps
from sag.diffusion import Condition, GaussianDiffusion, Memory, Prediction, Schedule
from sag.guidance import Guidance, GuidedDenoiser, WeakGuidance
from sag.guidance.base import Branch
from sag.models import Attend, Attention, AttentionLayer
from sag.noise import SampleNoise


def inner_network(network: Any) -> Any:
    """Return the network within a compiled one."""
    return getattr(network, "_orig_mod", network)


@dataclass(frozen=True)
class Loop:
    """What the pipeline's loop is doing.

    Args:
        pipe: The pipeline.
        call: The arguments of its call.
    """

    pipe: Any
    call: Mapping[str, Any]

    @property
    def branches(self) -> list[Branch]:
        """What the parts of the loop's batch are."""
        if isinstance(self.pipe, DiTPipeline):
            scale = self.call.get(
                "guidance_scale", inspect.signature(DiTPipeline.__call__).parameters["guidance_scale"].default
            )
            return ["cond", "uncond"] if scale > 1 else ["cond"]
        return ["uncond", "cond"] if self.pipe.do_classifier_free_guidance else ["cond"]  # callbacks may change it

    def schedule(self) -> SchedulerSteps:
        """Return the signal and noise at the steps of the pipeline's scheduler."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.timesteps = scheduler.timesteps.cpu()
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None
        return read_steps(scheduler)

    def step(self, timestep: Any) -> int:
        """Return the number of the present step, counted from the first of the scheduler's timesteps."""
        scheduler = self.pipe.scheduler
        for known in ("step_index", "begin_index"):  # the second before the first step of some schedulers
            step = getattr(scheduler, known, None)
            if step is not None:
                return int(step)
        told = torch.as_tensor(timestep).flatten()[0]
        return int((scheduler.timesteps - told.to(scheduler.timesteps.device)).abs().argmin())


@dataclass(frozen=True, eq=False)
class _Rows(Condition):
    """Which rows of the loop's batch a question is about: their arguments are its condition. The rows are `labels`.

    Args:
        uncond: The rows with the negative prompts of the same samples, if there are any.
    """

    uncond: Tensor | None = None

    @override
    def null(self) -> Condition | None:
        return None if self.uncond is None else replace(self, labels=self.uncond)


class _TwoBranches(Guidance):
    """Says that there is an unconditional prediction, as classifier-free guidance does, and adds nothing."""

    needs_uncond: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(1.0, (0.0, 1.0))


@dataclass(frozen=True, eq=False)
class _Step:
    """The network at one step of the loop, as a denoiser of some rows of the batch.

    What the loop itself asks is answered from its own pass; other questions are passes of their own.

    Args:
        network: The network.
        given: The arguments of the loop's pass, by name. The first is the batch.
        x_t: The latents of the samples, as guidance sees them, (N, C, h, w) float32.
        output: The network's output in that pass, (rows, C or more, h, w).
        found: The attentions of that pass.
        attention_layers: See `DenoiserLike`.
        diffusion: See `DenoiserLike`.
        sign: -1 if the network's output is minus what the diffusion takes.
    """

    network: Any
    given: Mapping[str, Any]
    x_t: Tensor
    output: Tensor
    found: Mapping[str, Attention]
    attention_layers: Mapping[str, AttentionLayer]
    diffusion: GaussianDiffusion
    sign: float
    num_classes: ClassVar[None] = None

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.x_t.shape[1:]
        return channels, height, width

    def condition(
        self, labels: Tensor | None = None, low_res: Tensor | None = None, texts: Sequence[str] | None = None
    ) -> Condition:
        raise NotImplementedError  # the loop has the conditions

    def respace(self, steps: int | str | Schedule) -> "_Step":
        raise NotImplementedError  # the loop has the scheduler

    def decode(self, x_0: Tensor) -> Tensor:
        raise NotImplementedError  # the pipeline does this

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
        rows = _where(condition)
        if x_t is self.x_t and not attend and set(capture) <= self.found.keys():
            found = {name: self.found[name] for name in capture}
            attention = {name: Attention(a.q[rows], a.k[rows], a.v[rows], a.size) for name, a in found.items()}
            output = self.output[rows]
        else:
            first, batch = next(iter(self.given.items()))
            arguments = _only(self.given, rows, len(batch))
            others = arguments[first][:, x_t.shape[1] :]  # of inpainting networks: mask and masked image
            arguments[first] = torch.cat([x_t.to(batch.dtype), others], dim=1)
            request = Request((x_t.shape[2], x_t.shape[3]), capture, attend or {})
            output = _ask(self.network, {**arguments, "return_dict": False}, request)[0]
            attention = request.found
        eps, x_0 = self.diffusion.resolve(self.sign * output[:, : x_t.shape[1]].float(), x_t, t)
        return Prediction(eps, attention=attention, x_0=x_0 if self.diffusion.carries_x0 else None)


class GuidedNetwork:
    """Stands in for the network during a call of the pipeline. All other attributes are the network's.

    Args:
        network: The network.
        loop: The loop that calls it.
        layers: Its attention layers.
        techniques: The guidance techniques.
        delta_space: See `GaussianDiffusion`.
    """

    def __init__(
        self,
        network: Any,
        loop: Loop,
        layers: Mapping[str, AttentionLayer],
        techniques: Sequence[Guidance],
        delta_space: DeltaSpace,
    ) -> None:
        self._network = network
        self._loop = loop
        self._layers = layers
        self._techniques = techniques
        self._delta_space = delta_space
        self._signature = inspect.signature(type(inner_network(network)).forward)
        self._memory = Memory()
        self._diffusion: GaussianDiffusion | None = None
        self._sign = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the network as the loop does, and add guidance to each part of the batch.

        Args:
            arguments: What the network's `forward` takes by position.
            named: What it takes by name.

        Returns:
            What the network returns.

        Raises:
            ValueError: If the parts of the batch are not of the same latents, or a layer was not read.
        """
        given = dict(self._signature.bind(None, *arguments, **named).arguments)
        del given["self"]
        batch = next(iter(given.values()))
        branches = self._loop.branches
        count, rest = divmod(len(batch), len(branches))
        x_t = batch[:count, : latent_channels(inner_network(self._network))].float()
        if self._diffusion is None:
            if rest or (len(branches) == 2 and not torch.equal(batch[:count], batch[count:])):
                raise ValueError(
                    f"{type(self._loop.pipe).__name__} does not ask its network about the negative and the positive prompt of "
                    "the same latents in one batch, so it cannot be guided here"
                )
            self._diffusion = self._read()
        diffusion = self._diffusion
        t = len(diffusion.schedule) - 1 - self._loop.step(given["timestep"])
        active = [g for g in self._techniques if g.active(float(diffusion.schedule.time[t]))]
        if not active:
            return self._network(**given)
        capture = {layer for g in active if isinstance(g, WeakGuidance) for layer in g.capture}
        request = Request((x_t.shape[2], x_t.shape[3]), [name for name in capture if name in self._layers])
        answer = _ask(self._network, given, request)
        parts = {branch: torch.arange(i * count, (i + 1) * count) for i, branch in enumerate(branches)}
        condition = _Rows(parts["cond"], uncond=parts.get("uncond"))
        step = _Step(self._network, given, x_t, answer[0], request.found, self._layers, diffusion, self._sign)
        guided = GuidedDenoiser(
            step,
            [*self._techniques, *([_TwoBranches()] if len(branches) == 2 else [])],
            lambda t, size: SampleNoise(0, range(count), step.shape, x_t.device).mask(t, size),
        )
        prediction = guided(x_t, t, condition, memory=self._memory)
        self._memory = prediction.memory
        added = self._sign * _difference(prediction, step(x_t, t, condition), diffusion, t)
        output = answer[0].clone()
        channels = slice(x_t.shape[1])  # a learned variance stays as it is
        output[:, channels] = (output[:, channels].float() + added.repeat(len(branches), 1, 1, 1)).to(output.dtype)
        return (output, *answer[1:]) if isinstance(answer, tuple) else type(answer)(sample=output)

    def _read(self) -> GaussianDiffusion:
        schedule = self._loop.schedule()
        self._sign = -1.0 if schedule.output == "minus_v" else 1.0
        prediction: Any = "v" if schedule.output == "minus_v" else schedule.output
        return GaussianDiffusion(schedule, None, prediction, clip_denoised=False, delta_space=self._delta_space)


def _difference(guided: Prediction, plain: Prediction, diffusion: GaussianDiffusion, t: int) -> Tensor:
    """Return what guidance adds to the network's output at the same x_t."""
    eps = guided.eps - plain.eps
    if guided.x_0 is not None and plain.x_0 is not None:
        return diffusion.target(guided.x_0 - plain.x_0, eps, t)
    of_clean = float(diffusion.schedule.noise[t] / diffusion.schedule.signal[t])
    return diffusion.target(-of_clean * eps, eps, t)


def _ask(network: Any, given: Mapping[str, Any], request: Request) -> Any:
    """Call a network with a request in addition to what the loop has for its attention layers."""
    parameters = inspect.signature(type(inner_network(network)).forward).parameters
    name = next(name for name in ("cross_attention_kwargs", "joint_attention_kwargs") if name in parameters)
    answer = network(**{**given, name: {**(given.get(name) or {}), "sag": request}})
    lost = [layer for layer in request.capture if layer not in request.found]
    if lost:
        raise ValueError(f"layer {lost[0]} was not read; something replaced its processor during the call")
    return answer


def _where(condition: Condition | None) -> Any:
    """Return the rows of a condition, as a slice if they are consecutive."""
    rows = [] if condition is None or condition.labels is None else condition.labels.tolist()
    consecutive = rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if consecutive else rows


def _only(value: Any, rows: Any, total: int) -> Any:
    """Return arguments for some rows of a batch only: those of every tensor that has as many rows as the batch."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() > 0 and len(value) == total else value
    if isinstance(value, Mapping):
        return {name: _only(one, rows, total) for name, one in value.items()}
    return type(value)(_only(one, rows, total) for one in value) if isinstance(value, (list, tuple)) else value
