"""How the networks of the library diffusers are called, and what they are told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor
from typing_extensions import override

from sag.diffusers.attention import Request
from sag.diffusion import Condition


@dataclass(frozen=True, eq=False)
class LatentCondition(Condition):
    """What a network of the library is told about the samples. Every tensor has one row per sample.

    Args:
        labels: See `Condition`.
        text: See `Condition`.
        low_res: None; these networks enlarge nothing.
        null_label: See `Condition`.
        null_text: See `Condition`.
        pooled: One embedding of each text, (N, P), for SDXL, SD3 and Flux.
        null_pooled: Those of the empty (or negative) texts, (N, P).
        time_ids: For SDXL, original size, crop and target size in pixels, (N, 6); by default the samples' size, not cropped.
        extra: Further input channels, (N, C, h, w). For inpainting, they are the mask and the latents of the masked image.
        control: Images for a ControlNet, (N, 3, H, W) in [0, 1].
    """

    pooled: Tensor | None = None
    null_pooled: Tensor | None = None
    time_ids: Tensor | None = None
    extra: Tensor | None = None
    control: Tensor | None = None

    @override
    def null(self) -> Condition | None:
        null = super().null()
        if null is None or self.labels is not None or self.null_pooled is None:
            return null
        return replace(null, pooled=self.null_pooled)  # type: ignore[call-arg]  # it has this class


@dataclass(frozen=True)
class Call:
    """One call of a network.

    Args:
        network: The network.
        x_t: (N, C, h, w) in the network's dtype.
        tau: What tells the network the step, (N,) float32.
        given: What the network is told.
        request: What to do with the attention layers; None for nothing.
        factor: How many pixels high and wide a latent is.
        controlnet: A ControlNet, if there is one.
        control_scale: The factor of what it adds.
        embedded_guidance: The guidance scale that distilled networks, such as FLUX.1-dev, are told.
    """

    network: Any
    x_t: Tensor
    tau: Tensor
    given: LatentCondition
    request: Request | None = None
    factor: int = 8
    controlnet: Any = None
    control_scale: float = 1.0
    embedded_guidance: float = 3.5

    @property
    def text(self) -> Tensor:
        """The embeddings of the texts, in the network's dtype."""
        if self.given.text is None:
            raise ValueError("this model needs texts: give prompt, or a condition with text")
        return self.given.text.to(self.x_t)

    @property
    def pooled(self) -> Tensor:
        """One embedding for each text, in the network's dtype."""
        if self.given.pooled is None:
            raise ValueError("this model needs one embedding for each text: give a LatentCondition with pooled")
        return self.given.pooled.to(self.x_t)

    def asked(self, name: str) -> dict[str, Any]:
        """Return the argument that carries the request, if there is one."""
        return {} if self.request is None else {name: {"sag": self.request}}


def call_unet(call: Call) -> Tensor:
    """Call a U-Net of Stable Diffusion 1, 2 or XL."""
    network, given, x_t = call.network, call.given, call.x_t
    added: dict[str, Any] = {}
    if network.config.addition_embed_type == "text_time":
        added = {"added_cond_kwargs": {"text_embeds": call.pooled, "time_ids": _time_ids(call)}}
    residuals: dict[str, Any] = {}
    if call.controlnet is not None:
        if given.control is None:
            raise ValueError("a ControlNet needs a condition with control, the images to follow")
        down, middle = call.controlnet(
            x_t, call.tau, call.text, given.control.to(x_t), call.control_scale, **added, return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    more, found = network.config.in_channels - x_t.shape[1], 0 if given.extra is None else given.extra.shape[1]
    if more != found:
        raise ValueError(
            f"this network takes {more} channels in addition to the latents (9-channel networks for inpainting: the mask and "
            f"the latents of the masked image), and the condition has {found}; give them as extra"
        )
    if given.extra is not None:
        x_t = torch.cat([x_t, given.extra.to(x_t)], dim=1)
    labels = None if network.config.num_class_embeds is None else given.labels
    (output,) = network(
        x_t, call.tau, call.text, labels, **added, **residuals, **call.asked("cross_attention_kwargs"), return_dict=False
    )
    return output  # type: ignore[no-any-return]


def call_dit(call: Call) -> Tensor:
    """Call a DiT (arXiv:2212.09748)."""
    if call.given.labels is None:
        raise ValueError("this model needs labels")
    asked = call.asked("cross_attention_kwargs")
    (output,) = call.network(call.x_t, timestep=call.tau, class_labels=call.given.labels, **asked, return_dict=False)
    return output  # type: ignore[no-any-return]


def call_sd3(call: Call) -> Tensor:
    """Call the transformer of Stable Diffusion 3."""
    asked = call.asked("joint_attention_kwargs")
    (output,) = call.network(call.x_t, call.text, call.pooled, call.tau, **asked, return_dict=False)
    return output  # type: ignore[no-any-return]


def call_flux(call: Call) -> Tensor:
    """Call the transformer of FLUX.1. Its tokens are squares of 2x2 latents."""
    n, channels, height, width = call.x_t.shape
    squares = call.x_t.view(n, channels, height // 2, 2, width // 2, 2)
    tokens = squares.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, 4 * channels)
    rows, columns = torch.meshgrid(*(torch.arange(s // 2, device=tokens.device) for s in (height, width)), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(tokens)
    guidance = None
    if call.network.config.guidance_embeds:
        guidance = torch.full((n,), call.embedded_guidance, device=tokens.device, dtype=torch.float32)
    (output,) = call.network(
        tokens,
        call.text,
        call.pooled,
        call.tau / 1000,
        places,
        torch.zeros(call.text.shape[1], 3).to(tokens),
        guidance,
        **call.asked("joint_attention_kwargs"),
        return_dict=False,
    )
    squares = output.view(n, height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, -1, height, width)  # type: ignore[no-any-return]


CALLS: Mapping[type, Callable[[Call], Tensor]] = {
    UNet2DConditionModel: call_unet,
    DiTTransformer2DModel: call_dit,
    Transformer2DModel: call_dit,
    SD3Transformer2DModel: call_sd3,
    FluxTransformer2DModel: call_flux,
}


def caller(network: object) -> Callable[[Call], Tensor]:
    """Return the function that calls a network.

    Raises:
        ValueError: If it is of no kind that is known here.
    """
    for kind, call in CALLS.items():
        if isinstance(network, kind):
            return call
    known = ", ".join(kind.__name__ for kind in CALLS)
    raise ValueError(f"{type(network).__name__} is no network that can be guided here; expected one of {known}")


def _time_ids(call: Call) -> Tensor:
    """Return what SDXL is told about sizes."""
    height, width = (length * call.factor for length in call.x_t.shape[2:])
    own = torch.tensor([[height, width, 0, 0, height, width]] * len(call.x_t))
    ids = own if call.given.time_ids is None else call.given.time_ids
    each, wanted = call.network.config.addition_time_embed_dim, call.network.config.projection_class_embeddings_input_dim
    if call.pooled.shape[1] + each * ids.shape[1] != wanted:
        text = call.pooled.shape[1]
        raise ValueError(
            f"this network is told {wanted} numbers of text and sizes, and the condition has {text} of text and {each} for "
            f"each of {ids.shape[1]} sizes; SDXL's refiner takes five time_ids"
        )
    return ids.to(call.x_t)
