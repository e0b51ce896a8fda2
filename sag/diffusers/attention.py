"""Self-attention of the networks of the library diffusers. The caller can read its queries, keys and values, and replace it.

One processor is set on the attention layers of a network, once. What it must do is an argument of each call of the network:

    layers = prepare(unet)
    request = Request(size=latents.shape[2:], capture=["middle"])
    unet(latents, t, text, cross_attention_kwargs={"sag": request})       # joint_attention_kwargs for SD3 and Flux
    request.found["middle"]                                               # an Attention

Without a request, the processor that was there before computes everything, so the network is the same to the bit. With one, it
still computes everything but the attention itself, which is seen on its way to PyTorch. This also covers fused projections,
LoRA, norms of queries and keys, and rotary embeddings.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from sag.models import Attend, Attention, AttentionLayer

KNOWN = (AttnProcessor2_0, FusedAttnProcessor2_0, JointAttnProcessor2_0, FusedJointAttnProcessor2_0, FluxAttnProcessor)
Tokens = Literal["image", "image_text", "text_image"]
"""Which tokens a layer attends over, in their order."""


@dataclass(frozen=True, eq=False)
class Request:
    """What one call of a network does with its attention layers.

    Args:
        size: (h, w) of the latents.
        capture: Names of the layers to read.
        attend: Replacements for attentions, by name. In joint layers they see and replace the image's tokens only.
        found: Filled during the call: the captured attentions, by name. In joint layers, those of the image's tokens.
    """

    size: tuple[int, int]
    capture: Collection[str] = ()
    attend: Mapping[str, Attend] = field(default_factory=dict)
    found: dict[str, Attention] = field(default_factory=dict)

    def concerns(self, name: str) -> bool:
        """Return whether a layer is read or replaced."""
        return name in self.capture or name in self.attend


@dataclass(frozen=True)
class Place:
    """Which layer a processor is set on.

    Args:
        name: The layer's name.
        patch: Height and width of a token, in latents, before any halving.
        halved: How often the map has been halved before this layer.
        tokens: Which tokens the layer attends over.
    """

    name: str
    patch: int = 1
    halved: int = 0
    tokens: Tokens = "image"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) of the layer's map for latents of this size. Odd lengths are rounded up where they are halved."""
        height, width = (-(-(length // self.patch) // 2**self.halved) for length in size)
        return height, width


class Processor:
    """Computes an attention layer as the wrapped processor does, and carries out the request of a call.

    Args:
        wrapped: The processor that computes the layer; by default the library's. The library makes one without arguments
            when it loads an IP-Adapter.
        place: The layer, if it is a self-attention layer that requests can name.
    """

    def __init__(self, wrapped: Any = None, place: Place | None = None) -> None:
        self.wrapped = AttnProcessor2_0() if wrapped is None else wrapped
        self.place = place

    @property
    def _attention_backend(self) -> Any:  # the library sets this name on processors that have it
        return self.wrapped._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.wrapped._attention_backend = backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *others: Any,
        sag: Request | None = None,
    ) -> Any:
        """Compute the layer.

        Args:
            attn: The layer.
            hidden_states: See the library.
            encoder_hidden_states: See the library.
            attention_mask: See the library.
            others: What the wrapped processor takes by position, such as Flux's rotary embedding.
            sag: What to do with the attention.

        Raises:
            ValueError: If the request concerns this layer, and its attention is masked or computed out of sight.
        """
        arguments = (attn, hidden_states, encoder_hidden_states, attention_mask, *others)
        if sag is None or self.place is None or not sag.concerns(self.place.name):
            return self.wrapped(*arguments)
        watching = _Watching(self.place, sag)
        with watching:
            result = self.wrapped(*arguments)
        if not watching.seen:
            raise ValueError(
                f"the attention of layer {self.place.name} is not computed by PyTorch; "
                "call reset_attention_backend() of the network first"
            )
        return result


class _Watching(TorchFunctionMode):
    """While it is on, in this thread, the attention of one layer is read and replaced."""

    def __init__(self, place: Place, request: Request) -> None:
        super().__init__()
        self.place = place
        self.request = request
        self.seen = False

    @override
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen = True
        return self._attention(*args, **kwargs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        name, tokens = self.place.name, self.place.tokens
        if attn_mask is not None:
            raise ValueError(f"the attention of layer {name} is masked; leave the attention mask of the image tokens out")
        size = self.place.grid(self.request.size)
        count, total = size[0] * size[1], query.shape[2]
        if count > total or (tokens == "image" and count < total):
            raise ValueError(f"layer {name} has {total} tokens, but latents of {self.request.size} have {count} there")
        start = total - count if tokens == "text_image" else 0
        image = slice(start, start + count)
        q, k, v = (x[:, :, image] for x in (query, key, value))  # (N, heads, h * w, D)
        if name in self.request.capture:
            self.request.found[name] = Attention(q, k, v, size)
        attend = self.request.attend.get(name)
        if attend is not None and count == total:
            return attend(q, k, v, size)
        mixed = F.scaled_dot_product_attention(query, key, value, **options)
        if attend is None:
            return mixed
        return torch.cat([mixed[:, :, :start], attend(q, k, v, size), mixed[:, :, image.stop :]], dim=2)


def prepare(network: nn.Module) -> dict[str, AttentionLayer]:
    """Set the processors on a network's attention layers, and list those that requests can name.

    A U-Net has `down.I.J`, `middle` and `up.I.J` for attention J of block I, followed by the number of the transformer block
    unless that is 0. A transformer has `block.N`, and `single.N` (Flux) or `block.N.image` (SD 3.5's second attention).
    The network computes the same as before, to the bit. Do this again after fusing projections, loading an IP-Adapter or
    changing processors otherwise; doing it twice is the same as once.

    Args:
        network: A network of the library diffusers.

    Returns:
        The layers by name, in the order in which the network computes them.

    Raises:
        ValueError: If there is no self-attention, or a layer has a processor that does not show its queries and keys.
    """
    found = list(_self_attentions(network))
    if not found:
        raise ValueError(f"{type(network).__name__} has no self-attention layers that guidance could read")
    for place, attn in found:
        inner = _unwrapped(attn.processor)
        if type(inner) not in KNOWN:
            raise ValueError(
                f"layer {place.name} has the attention processor {type(inner).__name__}, which does not show its queries and "
                "keys; remove it first, for example with disable_xformers_memory_efficient_attention() or "
                "disable_attention_slicing() of the pipeline, or set_default_attn_processor() of the network"
            )
    _quiet()
    own = {id(attn): place for place, attn in found}
    modules: Iterator[Any] = network.modules()
    for module in modules:
        processor = getattr(module, "processor", None)
        if id(module) in own or type(processor) in KNOWN:
            # Cross-attention is given the request too, and would warn of it; other processors there, such as those of
            # IP-Adapter, stay as they are because the library looks for their class.
            module.processor = Processor(_unwrapped(processor), own.get(id(module)))
    return {place.name: _described(network, place, attn) for place, attn in found}


def _unwrapped(processor: Any) -> Any:
    return processor.wrapped if isinstance(processor, Processor) else processor


def _described(network: Any, place: Place, attn: Any) -> AttentionLayer:
    height, width = latent_size(network)
    resolution = max(place.grid((height, width)))
    return AttentionLayer(resolution, attn.inner_dim, attn.heads, new_order=True)


def latent_size(network: Any) -> tuple[int, int]:
    """Return (h, w) of the latents that a network of the library was trained for, as its config says."""
    size = network.config.get("sample_size") or 128  # Flux's config has none: 1024 pixels
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _self_attentions(network: Any) -> Iterator[tuple[Place, Any]]:
    """Yield the self-attention layers in the order of computation."""
    if isinstance(network, UNet2DConditionModel):
        yield from _of_unet(network)
    elif isinstance(network, FluxTransformer2DModel):
        for n, block in enumerate(network.transformer_blocks):
            yield Place(f"block.{n}", 2, tokens="text_image"), block.attn
        for n, block in enumerate(network.single_transformer_blocks):
            yield Place(f"single.{n}", 2, tokens="text_image"), block.attn
    elif isinstance(network, SD3Transformer2DModel):
        patch = network.config.patch_size
        for n, block in enumerate(network.transformer_blocks):
            yield Place(f"block.{n}", patch, tokens="image_text"), block.attn
            if block.attn2 is not None:
                yield Place(f"block.{n}.image", patch), block.attn2
    else:
        for n, block in enumerate(getattr(network, "transformer_blocks", ())):
            if _is_self_attention(block):
                yield Place(f"block.{n}", network.config.get("patch_size") or 1), block.attn1


def _of_unet(network: Any) -> Iterator[tuple[Place, Any]]:
    halved = 0
    for i, block in enumerate(network.down_blocks):
        yield from _of_block(block, f"down.{i}", halved)
        halved += bool(block.downsamplers)
    if network.mid_block is not None:
        yield from _of_block(network.mid_block, "", halved)
    for i, block in enumerate(network.up_blocks):
        yield from _of_block(block, f"up.{i}", halved)
        halved -= bool(block.upsamplers)


def _of_block(block: Any, name: str, halved: int) -> Iterator[tuple[Place, Any]]:
    for j, attention in enumerate(getattr(block, "attentions", None) or ()):
        for b, transformer in enumerate(getattr(attention, "transformer_blocks", ())):
            if _is_self_attention(transformer):
                parts = [f"{name}.{j}" if name else "middle", *([str(b)] if b else [])]
                yield Place(".".join(parts), halved=halved), transformer.attn1


def _is_self_attention(block: Any) -> bool:
    return isinstance(block, BasicTransformerBlock) and not block.only_cross_attention


class _WithoutRequests(logging.Filter):
    """Drops the library's warning that a layer ignores the request, which is meant for other layers."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return "attention_kwargs ['sag'] are not expected by" not in record.getMessage()


_FILTER = _WithoutRequests()


def _quiet() -> None:
    for module in ("attention_processor", "transformers.transformer_flux"):
        logging.getLogger(f"diffusers.models.{module}").addFilter(_FILTER)  # adding it twice does nothing
