"""Memorisation: whether samples are nearer to training images than new real images are (Meehan et al., arXiv:2004.05675).

Let T be training images, H real images, and d(x) the distance of x to the nearest image of T in pool features. The value is the
probability that d(sample) < d(image of H), ties counted half: the statistic of the Mann-Whitney test in Meehan et al., Section
4. A generator that draws new images from the distribution of the data has 0.5, more means that it copies, and less that its
samples are farther from the data than real images are.

T is every second image of the reference, beginning with the first, and H is the others. For a generator that was trained on
both, the value is still 0.5 if it does not copy; one that copies all images of the reference equally often has 0.75, one that
copies those of T has 1. Copies of training images that are not in the reference are not seen. The order of the reference does
not matter, unless images alternate in kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from evaluations.metric import Metric, Rows

if TYPE_CHECKING:
    import torch

TILE = 1024  # rows whose distances are held at once


@dataclass(frozen=True)
class Memorisation(Metric["torch.Tensor"]):
    """How often a sample is nearer to one half of the reference than an image of the other half is: 0.5 without copying."""

    values: ClassVar = {"memorisation": "memorisation"}
    needs: ClassVar = frozenset({"pool"})
    place = 82
    summary = Rows("pool")

    @override
    def measure(self, sides: Sequence[torch.Tensor], device: torch.device) -> Mapping[str, float]:
        samples, reference = (side.to(device) for side in sides)
        return {"memorisation": share_nearer(samples, reference[0::2], reference[1::2])}


def share_nearer(samples: torch.Tensor, train: torch.Tensor, real: torch.Tensor) -> float:
    """Return how often a sample is nearer to the training images than a real image is.

    Args:
        samples: Features (N, D).
        train: Features (M, D) of the training images.
        real: Features (K, D) of the real images that samples are compared with.

    Returns:
        The share of the N K pairs, from 0 to 1, where the sample is nearer; where both are as near, a pair counts half.
    """
    import torch

    near_samples, near_real = nearest(samples, train), nearest(real, train).sort().values
    farther = len(near_real) - torch.searchsorted(near_real, near_samples, right=True)
    not_nearer = len(near_real) - torch.searchsorted(near_real, near_samples)
    return float((farther + not_nearer).double().mean()) / (2 * len(near_real))


def nearest(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each row of x (N, D) to the nearest row of y (M, D), (N,) float64; 0 for equal rows."""
    import torch

    centre = y.double().mean(0)
    columns = y.double() - centre
    norms = columns.square().sum(1)
    found = []
    for rows in x.split(TILE):
        place = torch.addmm(norms[None, :], rows.double() - centre, columns.T, alpha=-2).argmin(1)  # (n,)
        found.append((rows.double() - y[place].double()).square().sum(1))  # from differences, which are exact
    return torch.cat(found)
