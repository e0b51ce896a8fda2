"""Any pipeline of the library diffusers, with the techniques of this project.

    guided = SelfAttentionGuidancePipeline.from_pipe(pipe)
    guided("a photo of a cat", sag_scale=0.75).images

The pipeline's own loop runs, with everything that it can do. During a call it finds, in place of its network, an object that
is called in the same way and adds guidance to what the network answers. So guidance works in every loop that asks the network
about the negative and the positive prompt in one batch, or about one prompt.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline, DiTPipeline, StableDiffusionPipeline
from torch import Tensor, nn
from typing_extensions import override

from sag.diffusers.attention import Request, prepare
from sag.diffusers.denoiser import DeltaSpace, latent_channels
from sag.diffusers.schedules import SchedulerSteps, read_steps
from sag.diffusion import Condition, GaussianDiffusion, Memory, Prediction, Schedule
from sag.guidance import (
    BlurGuidance,
    ClassifierFreeGuidance,
    Guidance,
    GuidedDenoiser,
    ScoreGuidance,
    SelfAttentionGuidance,
    WeakGuidance,
)
from sag.guidance.base import Branch, Scale
from sag.models import Attend, Attention, AttentionLayer
from sag.noise import SampleNoise

POSITIONS = (
    "prompt", "height", "width", "num_inference_steps", "guidance_scale", "sag_scale", "negative_prompt",
    "num_images_per_prompt", "eta", "generator", "latents", "prompt_embeds", "negative_prompt_embeds", "ip_adapter_image",
    "ip_adapter_image_embeds", "output_type", "return_dict", "callback", "callback_steps", "cross_attention_kwargs",
    "clip_skip",
)  # fmt: skip
"""The order of the arguments of the library's StableDiffusionSAGPipeline."""
DEFAULT_SCALE = 0.75
Mask = Literal["attention", "global", "random", "square", "high_frequency"]


class SelfAttentionGuidancePipeline:
    """What `from_pipe` adds to a pipeline of the library. The result is also a pipeline of its former class.

    It shares its parts with the pipeline that it was made from, as after the library's own `from_pipe`. Neither that pipeline
    nor the parts are changed: what a call sets on the network's attention layers is removed at its end.
    """

    _network: ClassVar[str]
    """The name of the network: unet or transformer."""
    _standing_in: "_GuidedNetwork | None"
    """What the pipeline finds in its place during a call."""

    @classmethod
    def from_pipe(cls, pipe: Any) -> Any:
        """Return a pipeline with the same parts and settings whose calls are guided.

        Args:
            pipe: A pipeline with a unet (Stable Diffusion 1, 2, XL; image to image, inpainting, ControlNet), a
                StableDiffusion3Pipeline or a DiTPipeline.

        Raises:
            ValueError: If its network has no self-attention, or its loop is of another kind.
        """
        kind: Any = type(pipe)
        name = next((name for name in ("unet", "transformer") if getattr(pipe, name, None) is not None), None)
        if name is None:
            raise ValueError(f"{kind.__name__} has neither a unet nor a transformer, so there is nothing to guide")
        known = hasattr(kind, "do_classifier_free_guidance") or issubclass(kind, DiTPipeline)
        if not known or hasattr(kind, "do_perturbed_attention_guidance"):
            raise ValueError(
                f"{kind.__name__} is not known to ask its network about the negative and the positive prompt in one batch, "
                "so it cannot be guided; StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, their "
                "relatives for images, masks and ControlNet, and DiTPipeline can"
            )
        with _prepared(_inner(getattr(pipe, name))):
            pass
        guided = copy.copy(pipe)
        guided.__class__ = kind if issubclass(kind, SelfAttentionGuidancePipeline) else _guided(kind, name)
        return guided

    @classmethod
    def from_pretrained(cls, path: str, **options: Any) -> Any:
        """Load a pipeline with `DiffusionPipeline.from_pretrained`, and return it with guidance.

        Args:
            path: A folder, or a repository of the hub.
            options: See the library.

        Raises:
            ValueError: See `from_pipe`.
        """
        return cls.from_pipe(DiffusionPipeline.from_pretrained(path, **options))

    @property
    def components(self) -> dict[str, Any]:
        """The parts, as the library lists them. Offloading goes through them also during a call, so they are the real ones."""
        parts: Any = super()
        return {**parts.components, self._network: self.__dict__[self._network]}

    def __call__(
        self,
        *arguments: Any,
        sag_scale: Scale | None = None,
        guidance: str | Sequence[str | Guidance] = "sag",
        layer: str | None = None,
        blur_sigma: float = 1.0,
        blur_kernel: int = 9,
        threshold: float = 1.0,
        blend: Literal["clean", "noisy"] = "clean",
        branch: Branch = "uncond",
        mask: Mask = "attention",
        interval: Sequence[float] = (0.0, 1.0),
        delta_space: DeltaSpace = "output",
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int | None = None,
        **others: Any,
    ) -> Any:
        """Sample. All arguments of the pipeline's own call can be given by name.

        Args:
            arguments: For StableDiffusionPipeline, the arguments of the library's StableDiffusionSAGPipeline in its order; for
                other pipelines, their first argument.
            sag_scale: The paper's s, by default 0.75, of "sag" and "blur". With 0, they are off.
            guidance: The techniques: "sag", "blur", which takes the options of SAG, and objects of `sag.guidance`. If all are
                off, the pipeline is called as it is. Classifier-free guidance is its own guidance_scale.
            layer: The attention layer that SAG reads; None is "middle" for U-Nets, the block in the middle for transformers.
            blur_sigma: See `BlurGuidance`, in latents.
            blur_kernel: See `BlurGuidance`.
            threshold: See `SelfAttentionGuidance`.
            blend: See `SelfAttentionGuidance`.
            branch: See `BlurGuidance`.
            mask: See `SelfAttentionGuidance`.
            interval: See `Guidance`.
            delta_space: Whether differences of the network's outputs are added, as in the library's own pipeline, or those of
                eps.
            callback: Called with the step, the timestep and the latents. New code uses callback_on_step_end.
            callback_steps: Every how many steps it is called; 1 by default.
            others: The pipeline's own arguments.

        Returns:
            What the pipeline returns.

        Raises:
            ValueError: If an argument is unknown or outside its range, the layer is unknown, or the scheduler does not say how
                much noise there is.
        """
        plain: Any = super()
        own = {"sag_scale": sag_scale, "callback": callback, "callback_steps": callback_steps}
        named = {**others, **{name: value for name, value in own.items() if value is not None}}
        call = _named(self, arguments, named)
        scale: Scale | None = call.pop("sag_scale", None)
        _replace_callback(self, call)
        layer = _middle(_inner(getattr(self, self._network))) if layer is None else layer
        listed = [guidance] if isinstance(guidance, str) else list(guidance)
        if scale and not {"sag", "blur"} & {g for g in listed if isinstance(g, str)}:
            raise ValueError('sag_scale is of "sag" and "blur", and guidance has neither; add one, or leave sag_scale out')
        scale = DEFAULT_SCALE if scale is None else scale
        named_techniques: dict[str, Guidance] = {
            "sag": SelfAttentionGuidance(
                scale, layer, blur_sigma, blur_kernel, threshold, blend=blend, branch=branch, mask=mask, interval=interval
            ),
            "blur": BlurGuidance(scale, blur_sigma, blur_kernel, branch, interval),
        }
        techniques = [_technique(given, named_techniques) for given in listed]
        techniques = [g for g in techniques if callable(g.scale) or g.scale]
        if not techniques:
            return plain.__call__(**call)
        if call.get("skip_guidance_layers") is not None:
            raise ValueError("skip_guidance_layers is guidance in the pipeline's own loop; leave it out, or set sag_scale=0")
        network = self.__dict__[self._network]
        before = self.__dict__.get("_standing_in")
        with _prepared(_inner(network)) as layers:
            self._standing_in = _GuidedNetwork(network, _Loop(self, call), layers, techniques, delta_space)
            try:
                return plain.__call__(**call)
            finally:
                self._standing_in = before


@cache
def _guided(kind: Any, network: str) -> type:
    """Return a class of pipelines that is guided. It has the former name, so that a saved pipeline is a plain one."""

    def get(pipe: Any) -> Any:
        standing_in = pipe.__dict__.get("_standing_in")
        return pipe.__dict__[network] if standing_in is None else standing_in

    def put(pipe: Any, value: Any) -> None:
        pipe.__dict__[network] = value

    def call(pipe: Any, *arguments: Any, **named: Any) -> Any:
        return SelfAttentionGuidancePipeline.__call__(pipe, *arguments, **named)

    call.__doc__ = SelfAttentionGuidancePipeline.__call__.__doc__
    call.__signature__ = _signature(kind)  # type: ignore[attr-defined]  # so that editors and notebooks list the arguments
    members = {
        network: property(get, put),
        "_network": network,
        "__call__": call,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (SelfAttentionGuidancePipeline, kind), members)


def _signature(kind: Any) -> inspect.Signature:
    """Return the arguments of a guided pipeline: its own, and those of guidance."""
    own, options = (
        inspect.signature(function).parameters for function in (kind.__call__, SelfAttentionGuidancePipeline.__call__)
    )
    known = {name: p for name, p in {**own, **options}.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known["sag_scale"] = known["sag_scale"].replace(default=DEFAULT_SCALE)
    order = ["self", *_order(kind, [name for name in own if name != "self"])]
    by_position = [known[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in order]
    by_name = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in known.items() if name not in order]
    return inspect.Signature([*by_position, *by_name])


def _order(kind: Any, own: Sequence[str]) -> Sequence[str]:
    """Return the names of the arguments that a pipeline of this kind takes by position."""
    return POSITIONS if issubclass(kind, StableDiffusionPipeline) else own[:1]


def _inner(network: Any) -> Any:
    """Return the network within a compiled one."""
    return getattr(network, "_orig_mod", network)


@contextmanager
def _prepared(network: nn.Module) -> Iterator[dict[str, AttentionLayer]]:
    """Set the processors that carry out requests, and remove them in the end. The value is what `prepare` returns."""
    modules: list[Any] = list(network.modules())
    before = {module: module.processor for module in modules if hasattr(module, "processor")}
    ours: dict[Any, Any] = {}
    try:
        layers = prepare(network)
        ours = {module: module.processor for module in before}
        yield layers
    finally:
        for module, processor in before.items():
            if module.processor is ours.get(module, module.processor):  # else a call in another thread has set its own
                module.processor = processor


def _middle(network: Any) -> str:
    blocks = getattr(network, "transformer_blocks", None)
    return "middle" if blocks is None else f"block.{(len(blocks) - 1) // 2}"


def _named(pipe: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    kind = type(pipe)
    own = inspect.signature(super(SelfAttentionGuidancePipeline, pipe).__call__).parameters
    known = [name for name, p in own.items() if p.kind is not p.VAR_KEYWORD]
    order = _order(kind, known)
    if len(arguments) > len(order):
        raise ValueError(f"{kind.__name__} takes {len(order)} arguments by position here; give the others by name")
    by_position = dict(zip(order, arguments, strict=False))
    twice = sorted(by_position.keys() & named.keys())
    if twice:
        raise ValueError(f"{twice[0]} is given by position and by name")
    options = [p.name for p in inspect.signature(SelfAttentionGuidancePipeline.__call__).parameters.values()]
    for name in named:
        if name not in known and name not in ("sag_scale", "callback", "callback_steps"):
            near = get_close_matches(name, [*known, *options], 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"{kind.__name__} takes no argument {name!r}; {hint}")
    return {**by_position, **named}


def _replace_callback(pipe: Any, call: dict[str, Any]) -> None:
    """Put callback_on_step_end in the place of `callback`, which the library is about to remove."""
    callback, every = call.pop("callback", None), call.pop("callback_steps", None)
    every = 1 if every is None else every
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"callback_steps must be a whole number from 1 on, got {every!r}")
    if callback is None:
        return
    own = inspect.signature(super(SelfAttentionGuidancePipeline, pipe).__call__).parameters
    if "callback_on_step_end" not in own or call.get("callback_on_step_end") is not None:
        raise ValueError("callback cannot be used here; give callback_on_step_end alone, if the pipeline takes it")

    def on_step_end(pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        order = getattr(pipe.scheduler, "order", 1)
        if (step + 1) % order == 0 and step % every == 0:
            callback(step // order, timestep, tensors["latents"])
        return {}

    call["callback_on_step_end"] = on_step_end


def _technique(given: Any, by_name: Mapping[str, Guidance]) -> Guidance:
    """Return a technique, which may be given by name."""
    if isinstance(given, str) and given in by_name:
        return by_name[given]
    if isinstance(given, (ClassifierFreeGuidance, ScoreGuidance)) or (isinstance(given, str) and given == "cfg"):
        raise ValueError(
            f"{given if isinstance(given, str) else type(given).__name__} cannot be used in a pipeline of the library; "
            "its own argument guidance_scale is classifier-free guidance"
        )
    if not isinstance(given, Guidance):
        raise ValueError(f"unknown guidance {given!r}; expected {', '.join(by_name)} or an object of sag.guidance")
    return given


@dataclass(frozen=True)
class _Loop:
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


class _GuidedNetwork:
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
        loop: _Loop,
        layers: Mapping[str, AttentionLayer],
        techniques: Sequence[Guidance],
        delta_space: DeltaSpace,
    ) -> None:
        self._network = network
        self._loop = loop
        self._layers = layers
        self._techniques = techniques
        self._delta_space = delta_space
        self._signature = inspect.signature(type(_inner(network)).forward)
        self._memory = Memory()
        self._diffusion: GaussianDiffusion | None = None
        self._sign = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        given = dict(self._signature.bind(None, *arguments, **named).arguments)
        del given["self"]
        batch = next(iter(given.values()))
        branches = self._loop.branches
        count, rest = divmod(len(batch), len(branches))
        x_t = batch[:count, : latent_channels(_inner(self._network))].float()
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
    parameters = inspect.signature(type(_inner(network)).forward).parameters
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
