"""Any pipeline of the library diffusers, with the techniques of this project.

    guided = SelfAttentionGuidancePipeline.from_pipe(pipe)
    guided("a photo of a cat", sag_scale=0.75).images

The pipeline's own loop runs, with everything that it can do. During a call it finds, in place of its network, an object that
is called in the same way and adds guidance to what the network answers. So guidance works in every loop that asks the network
about the negative and the positive prompt in one batch, or about one prompt.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, Literal

from diffusers import DiffusionPipeline, DiTPipeline, StableDiffusionPipeline
from torch import Tensor, nn

from sag.diffusers.attention import prepare
from sag.diffusers.denoiser import DeltaSpace
from sag.diffusers.guided_network import GuidedNetwork, Loop, inner_network
from sag.guidance import (
    BlurGuidance,
    ClassifierFreeGuidance,
    Guidance,
    ScoreGuidance,
    SelfAttentionGuidance,
)
from sag.guidance.base import Branch, Scale
from sag.models import AttentionLayer

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
    _standing_in: "GuidedNetwork | None"
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
        with _prepared(inner_network(getattr(pipe, name))):
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
        layer = _middle(inner_network(getattr(self, self._network))) if layer is None else layer
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
        with _prepared(inner_network(network)) as layers:
            self._standing_in = GuidedNetwork(network, Loop(self, call), layers, techniques, delta_space)
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
