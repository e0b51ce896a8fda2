"""CMMD (Jayasumana et al., arXiv:2401.09603): maximum mean discrepancy with a Gaussian kernel.

The metric is CMMD if the extractor is the paper's CLIP image encoder (ViT-L/14 at 336 pixels, bicubic resize), which you
provide with extractor=module or extractor=torchscript. With other features, the values are only comparable with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from evaluations.metric import Metric, Rows, Unavailable

if TYPE_CHECKING:
    import torch

SIGMA, SCALE = 10.0, 1000.0  # the authors' values
TILE = 2048  # rows and columns of a tile of the kernel


@dataclass(frozen=True)
class CMMD(Metric["torch.Tensor"]):
    """Squared MMD of normalised pool features with a Gaussian kernel, times 1000; with CLIP's features it is CMMD."""

    values: ClassVar = {"cmmd": "CMMD"}
    needs: ClassVar = frozenset({"pool"})
    place = 80
    summary = Rows("pool")

    @override
    def measure(self, sides: Sequence[torch.Tensor], device: torch.device) -> Mapping[str, float]:
        samples, reference = sides
        return {"cmmd": SCALE * squared_mmd(samples.to(device), reference.to(device))}


def squared_mmd(samples: torch.Tensor, reference: torch.Tensor, sigma: float = SIGMA) -> float:
    """Compute the squared maximum mean discrepancy of normalised features.

    As in the authors' program, features are scaled to length 1, and each feature is compared with itself too, so the value is
    never negative.

    Args:
        samples: Features, (N, D).
        reference: Features, (M, D).
        sigma: Width of the kernel exp(-|x - y|^2 / (2 sigma^2)).

    Returns:
        The mean kernel within the samples plus the mean within the reference, minus twice the mean between the two.

    Raises:
        Unavailable: If an image has features that are all zero, which have no direction.
    """
    x, y = (_directions(features, name) for features, name in ((samples, "samples"), (reference, "reference")))
    within = sum(_mean_excess(v, v, sigma) for v in (x, y))
    return within - 2 * _mean_excess(x, y, sigma)


def _directions(features: torch.Tensor, name: str) -> torch.Tensor:
    rows = features.double()
    lengths: torch.Tensor = rows.norm(dim=1, keepdim=True)
    zero = (lengths[:, 0] == 0).nonzero()[:, 0].tolist()
    if zero:
        raise Unavailable(f"image {zero[0]} of the {name} has features that are all zero, which have no direction")
    return rows / lengths


def _mean_excess(x: torch.Tensor, y: torch.Tensor, sigma: float) -> float:
    """Return the mean of the kernel minus 1. The ones cancel in the distance, and would cost digits with a wide kernel."""
    total = 0.0
    for rows in x.split(TILE):
        for columns in y.split(TILE):
            squared = (2 - 2 * rows @ columns.T).clamp_min_(0)
            total += float((squared / (-2 * sigma**2)).expm1_().sum())
    return total / (len(x) * len(y))
