"""Memorisation: whether samples are nearer to training images than new real images are (Meehan et al., arXiv:2004.05675).

Let T be training images, H real images, and d(x) the distance of x to the nearest image of T in pool features. The value is the
probability that d(sample) < d(image of H), where ties count half. This is the statistic of the Mann-Whitney test in section 4
of the paper. It is 0.5 for a generator that draws new images from the distribution of the data. A higher value means that it
copies; a lower value means that its samples are farther from the data than real images are.

T is every second image of the reference, starting with the first, and H is the rest. For a generator that was trained on both,
the value is still 0.5 if it does not copy. It is 0.75 if it copies all images of the reference equally often, and 1 if it
copies only those of T. Copies of training images that are not in the reference are not detected. The order of the reference
does not matter, unless images alternate in kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from evaluations.metric import Metric, Rows

if TYPE_CHECKING:
    import torch

TILE = 1024  # rows whose distances are computed at once


@dataclass(frozen=True)
class Memorisation(Metric["torch.Tensor"]):
    """How often a sample is nearer to one half of the reference than an image of the other half is; 0.5 without copying."""

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
        samples: Features, (N, D).
        train: Features of the training images, (M, D).
        real: Features of the real images that samples are compared with, (K, D).

    Returns:
        The share of the N K pairs, in [0, 1], in which the sample is nearer. Pairs with equal distances count half.
    """
    import torch

    near_samples, near_real = nearest(samples, train), nearest(real, train).sort().values
    farther = len(near_real) - torch.searchsorted(near_real, near_samples, right=True)
    not_nearer = len(near_real) - torch.searchsorted(near_real, near_samples)
    return float((farther + not_nearer).double().mean()) / (2 * len(near_real))


def nearest(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each row of x to the nearest row of y.

    Args:
        x: (N, D).
        y: (M, D).

    Returns:
        (N,) float64. It is exactly 0 for equal rows.
    """
    import torch

    centre = y.double().mean(0)
    columns = y.double() - centre
    norms = columns.square().sum(1)
    found = []
    for rows in x.split(TILE):
        place = torch.addmm(norms[None, :], rows.double() - centre, columns.T, alpha=-2).argmin(1)  # (n,)
        found.append((rows.double() - y[place].double()).square().sum(1))  # differences are exact, products are not
    return torch.cat(found)
