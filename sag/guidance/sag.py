"""Self-Attention Guidance (arXiv:2210.00939, Alg. 1): blur the image where the model attends."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from sag.diffusion import DenoiserLike
from sag.guidance.base import Branch, GuidanceState, Scale
from sag.guidance.blur import BlurGuidance
from sag.models import Attention, check_layers

MASKS = ("attention", "global", "random", "square", "high_frequency")
RELEASED_HEADS = 4
Heads = Literal["own", "released"]
"""How the channels of a layer are split into heads."""


def attention_mass(attention: Attention, heads: Heads = "own") -> Tensor:
    """Compute how much each position is attended to: the mean over heads of the attention summed over queries.

    Args:
        attention: The captured attention.
        heads: "own" for those of the layer; "released" to split the channels as the released program does: into 4 groups of
            the interleaved [head][q,k,v][channel] layout. For a layer with 4 heads the two are the same; for others, the
            second is not an attention map.

    Returns:
        (N, h, w) float32 with mean 1 over the positions.
    """
    q, k = attention.q.float(), attention.k.float()  # (N, heads, T, D)
    if heads == "released":
        interleaved = torch.stack([attention.q, attention.k, attention.v], dim=2).float()  # (N, heads, 3, T, D)
        channels = interleaved.transpose(3, 4).flatten(1, 3)  # (N, 3 C, T)
        q, k, _ = channels.unflatten(1, (RELEASED_HEADS, 3, -1)).transpose(3, 4).unbind(2)  # (N, 4, T, C / 4)
    mass = torch.zeros_like(q[:, 0, :, 0])  # (N, T)
    for q_head, k_head in zip(q.unbind(1), k.unbind(1), strict=True):  # one at a time, since T x T takes the most memory
        mass += (q_head @ k_head.mT / q_head.shape[-1] ** 0.5).softmax(dim=-1).sum(dim=1)
    return (mass / q.shape[1]).view(-1, *attention.size)


class SelfAttentionGuidance(BlurGuidance):
    """Guidance away from the prediction made from an image that is blurred where the model attends.

    Args:
        scale: The paper's s. The released program's command line takes 1 + s.
        layer: The attention layer to read, such as "output.2" or "middle" (see `DenoiserLike.attention_layers`).
        blur_sigma: See `BlurGuidance`.
        blur_kernel: See `BlurGuidance`.
        threshold: The paper's psi. Positions with more attention mass are blurred.
        heads: "own", or "released" for the released program's split into heads (see `attention_mass`).
        blend: "clean" blends the predicted clean image with its blur and then adds the predicted noise, as the released program
            does; "noisy" blends in x_t space, as in the paper. The two differ where x_0 was clamped.
        branch: See `BlurGuidance`.
        mask: "attention", or one of the paper's ablations. "global" blurs everywhere. The others blur as many positions as the
            attention mask: at "random" places, in a "square" around the centre, or where x_0 has most "high_frequency" energy.
        interval: See `Guidance`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        scale: Scale,
        layer: str,
        blur_sigma: float,
        blur_kernel: int = 31,
        threshold: float = 1.0,
        heads: Heads = "own",
        blend: Literal["clean", "noisy"] = "clean",
        branch: Branch = "uncond",
        mask: Literal["attention", "global", "random", "square", "high_frequency"] = "attention",
        interval: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(scale, blur_sigma, blur_kernel, branch, interval)
        if heads not in ("own", "released"):
            raise ValueError(f"heads must be own or released, got {heads!r}")
        if blend not in ("clean", "noisy"):
            raise ValueError(f"blend must be clean or noisy, got {blend!r}")
        if mask not in MASKS:
            raise ValueError(f"unknown mask {mask!r}; expected one of {', '.join(MASKS)}")
        self.layer = layer
        self.threshold = threshold
        self.heads = heads
        self.blend = blend
        self.mask_kind = mask
        self.capture = () if mask == "global" else (layer,)

    @override
    def check(self, denoiser: DenoiserLike) -> None:
        check_layers([self.layer], denoiser.attention_layers)
        layer = denoiser.attention_layers[self.layer]
        if self.heads == "released" and (layer.new_order or layer.channels % RELEASED_HEADS):
            raise ValueError(
                f"heads=released is not defined for layer {self.layer}: the released program supports neither the new "
                f"attention order nor numbers of channels that {RELEASED_HEADS} does not divide; use heads=own"
            )

    def mask(self, state: GuidanceState, x_0: Tensor, blurred: Tensor) -> Tensor:
        """Return the positions to blur.

        Args:
            state: The step.
            x_0: The predicted clean image, (N, C, H, W).
            blurred: Its blur, (N, C, H, W).

        Returns:
            (N, h, w) bool on the layer's map or, for the global mask, (N, H, W), all True.
        """
        if self.mask_kind == "global":
            return torch.ones_like(x_0[:, 0], dtype=torch.bool)
        attention = state.prediction(self.branch).attention[self.layer]
        chosen = attention_mass(attention, self.heads) > self.threshold
        if self.mask_kind == "random":
            chosen = _as_many(chosen, state.random(attention.size))
        elif self.mask_kind == "square":
            chosen = _as_many(chosen, _centredness(attention.size, x_0.device).expand(chosen.shape))
        elif self.mask_kind == "high_frequency":
            energy = (x_0 - blurred).square().mean(dim=1)  # (N, H, W)
            chosen = _as_many(chosen, F.adaptive_avg_pool2d(energy, attention.size))
        return chosen

    @override
    def degrade(self, state: GuidanceState) -> Tensor:
        x_0, blurred = self.clean_and_blurred(state)
        mask = (
            F.interpolate(self.mask(state, x_0, blurred)[:, None].float(), x_0.shape[2:], mode="nearest") > 0.5
        )  # (N, 1, H, W)
        eps = state.prediction(self.branch).eps
        if self.blend == "noisy":
            return torch.where(mask, state.diffusion.q_sample(blurred, state.t, eps), state.x_t)
        return state.diffusion.q_sample(torch.where(mask, blurred, x_0), state.t, eps)


def _as_many(chosen: Tensor, scores: Tensor) -> Tensor:
    """Choose the positions with the highest `scores` (N, h, w), as many per image as `chosen` (N, h, w) has."""
    ranks = scores.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count = chosen.flatten(1).sum(dim=1, keepdim=True)
    return (ranks < count).view(chosen.shape)


def _centredness(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return (h, w) numbers that are highest in the middle and equal along squares around it."""
    lines = [(torch.arange(n, device=device) - (n - 1) / 2).abs() / n for n in size]
    return -torch.maximum(lines[0][:, None], lines[1][None, :])
