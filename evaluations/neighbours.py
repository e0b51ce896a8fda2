"""Metrics of nearest neighbours: precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797).

Features are (N, D) float32 on one device. Distances are computed in tiles by matrix products. Every decision that rounding
could change is made again from the differences in float64. The results are therefore those of exact arithmetic, for any
device, tile size and library.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from evaluations.precise import float32_products

DistanceDtype = Literal["float32", "float16"]
TILE = 512  # rows and columns of a tile of distances
SPARE = 4  # candidates beyond the k-th neighbour whose distances are computed exactly
PAIRS = 256  # pairs whose distances are computed exactly at once
ROWS = 16  # rows whose candidates are computed exactly at once


def precision_recall(
    samples: Tensor, reference: Tensor, k: int = 3, distance_dtype: DistanceDtype = "float32"
) -> tuple[float, float]:
    """Compute precision and recall (arXiv:1904.06991).

    Args:
        samples: Features of the samples, (N, D) float32.
        reference: Features of the reference images, (M, D) float32.
        k: The radius of an image's neighbourhood is the distance of its k-th nearest neighbour.
        distance_dtype: "float16" rounds as ADM's evaluator does, which raises both values a little.

    Returns:
        Precision, the share of samples in the neighbourhood of a reference image; and recall, the share of reference images in
        the neighbourhood of a sample.

    Raises:
        ValueError: If there are not enough images for k neighbours, or features are not finite.
    """
    _check(samples, reference, k)
    if distance_dtype == "float16":
        return _precision_recall_float16(samples, reference, k)
    in_reference = _Count(len(samples), len(reference), samples.device)
    in_samples = _Count(len(samples), len(reference), samples.device)
    near_reference, near_samples = radii(reference, k), radii(samples, k)
    for rows, columns, tile in _tiles(samples, reference):
        in_reference.add(rows, columns, tile.within(near_reference[columns][None, :]))
        in_samples.add(rows, columns, tile.within(near_samples[rows][:, None]))
    return _share(in_reference.of_row), _share(in_samples.of_column)


def density_coverage(samples: Tensor, reference: Tensor, k: int = 5) -> tuple[float, float]:
    """Compute density and coverage (arXiv:2002.09797). Neighbourhoods are open, as in the authors' program.

    Args:
        samples: See `precision_recall`.
        reference: See `precision_recall`.
        k: See `precision_recall`.

    Returns:
        Density, the mean number of reference neighbourhoods that contain a sample, divided by k; and coverage, the share of
        reference neighbourhoods that contain a sample.

    Raises:
        ValueError: See `precision_recall`.
    """
    _check(samples, reference, k)
    inside = _Count(len(samples), len(reference), samples.device)
    near = radii(reference, k)
    for rows, columns, tile in _tiles(samples, reference):
        inside.add(rows, columns, tile.within(near[columns][None, :], closed=False))
    return float(inside.of_row.sum()) / (k * len(samples)), _share(inside.of_column)


def radii(features: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row to its k-th nearest other row.

    Args:
        features: (N, D) float32.
        k: Which neighbour.

    Returns:
        (N,) float64.
    """
    candidates = min(k + 1 + SPARE, len(features))
    found = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for rows, columns, tile in _tiles(features, features):
        if columns.start == 0:
            near, where, error = tile.squared[:, :0], torch.empty_like(tile.squared[:, :0], dtype=torch.int64), tile.error[:, 0]
        value, place = tile.squared.topk(min(candidates, tile.squared.shape[1]), largest=False)
        near, order = torch.cat([near, value], 1).topk(min(candidates, columns.stop), largest=False)
        where = torch.cat([where, place + columns.start], 1).gather(1, order)
        error = torch.maximum(error, tile.error.amax(1))
        if columns.stop == len(features):
            found[rows] = _kth(features, rows, where, near[:, -1] - error, k)
    return found


def _kth(features: Tensor, rows: slice, candidates: Tensor, others: Tensor, k: int) -> Tensor:
    """Return the exact k-th distances of rows. `others` (n,) is a lower bound for all that are not `candidates` (n, m)."""
    own = features[rows]
    pairs = [_exact(x[:, None], features[places]) for x, places in zip(own.split(ROWS), candidates.split(ROWS), strict=True)]
    radius = torch.cat(pairs).topk(k + 1, largest=False).values[:, k]
    if candidates.shape[1] < len(features):
        for row in ((radius > others) & (radius > 0)).nonzero()[:, 0].tolist():
            distances = torch.cat([_exact(own[row], part) for part in features.split(PAIRS)])
            radius[row] = distances.topk(k + 1, largest=False).values[k]
    return radius


class _Count:
    """Counts the columns that are inside for each row, and the rows for each column."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.of_row = torch.zeros(rows, dtype=torch.int64, device=device)
        self.of_column = torch.zeros(columns, dtype=torch.int64, device=device)

    def add(self, rows: slice, columns: slice, inside: Tensor) -> None:
        self.of_row[rows] += inside.sum(1)
        self.of_column[columns] += inside.sum(0)


class _Tile:
    """Approximate squared distances of x (n, D) to y (m, D), and bounds of their errors, (n, m) in the dtype of `centre`."""

    def __init__(self, x: Tensor, y: Tensor, centre: Tensor, norm_x: Tensor, norm_y: Tensor) -> None:
        self.x, self.y = x, y
        with float32_products():
            self.squared = torch.addmm(norm_y.square()[None, :], x - centre, (y - centre).T, alpha=-2)
        self.squared += norm_x.square()[:, None]
        # The error of an inner product of D terms is at most D u |x| |y|; add 8 for the sums and roundings around it
        root = ((x.shape[1] + 8) * torch.finfo(centre.dtype).eps / 2) ** 0.5
        self.error = (norm_x * root)[:, None].add((norm_y * root)[None, :]).square_()

    def within(self, radius: Tensor, closed: bool = True) -> Tensor:
        """Return whether the true squared distances are at most `radius`, or below it if not `closed`.

        Args:
            radius: (1, m) or (n, 1).
            closed: Whether equality counts.

        Returns:
            (n, m) bool.
        """
        excess = self.squared - radius.to(self.squared.dtype)
        inside = excess < 0
        rows, columns = (excess.abs_() <= self.error).nonzero(as_tuple=True)
        limit = radius.expand(len(self.x), len(self.y))
        for r, c in zip(rows.split(PAIRS), columns.split(PAIRS), strict=True):
            exact = _exact(self.x[r], self.y[c])
            inside[r, c] = exact <= limit[r, c] if closed else exact < limit[r, c]
        return inside


def _tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, _Tile]]:
    centre = y.mean(0)  # errors are smaller near zero
    probe = next(_tiles_around(centre, x[:: -(-len(x) // 64)], y[:: -(-len(y) // TILE)]))[2]
    near = probe.squared.topk(min(4, probe.squared.shape[1]), largest=False).values[:, -1]
    # If neighbours are so near that float32 leaves many pairs to be computed exactly, float64 is faster
    fine = near.median() > 500 * probe.error.median()
    yield from _tiles_around(centre if fine else centre.double(), x, y)


def _tiles_around(centre: Tensor, x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, _Tile]]:
    norm_x, norm_y = (torch.cat([torch.linalg.vector_norm(part - centre, dim=1) for part in v.split(TILE)]) for v in (x, y))
    for top in range(0, len(x), TILE):
        rows = slice(top, min(top + TILE, len(x)))
        for left in range(0, len(y), TILE):
            columns = slice(left, min(left + TILE, len(y)))
            yield rows, columns, _Tile(x[rows], y[columns], centre, norm_x[rows], norm_y[columns])


def _exact(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() - y.double()).square_().sum(-1)


def _share(counts: Tensor) -> float:
    return int((counts > 0).sum()) / len(counts)


def _check(samples: Tensor, reference: Tensor, k: int) -> None:
    for name, features in (("samples", samples), ("reference images", reference)):
        if len(features) <= k:
            raise ValueError(f"{k} nearest neighbours need more than {k} {name}, got {len(features)}")
        if not all(part.isfinite().all() for part in features.split(TILE)):  # in parts, since it needs a copy
            raise ValueError(f"features of the {name} are not finite")


def _precision_recall_float16(samples: Tensor, reference: Tensor, k: int) -> tuple[float, float]:
    near_samples, near_reference = (
        torch.cat([_rounded(rows, features).topk(k + 1, largest=False).values[:, k] for rows in features.split(TILE)])
        for features in (samples, reference)
    )
    covered = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    precise = []
    for rows, near in zip(samples.split(TILE), near_samples.split(TILE), strict=True):
        squared = _rounded(rows, reference)
        precise.append((squared <= near_reference[None, :]).any(1))
        covered |= (squared <= near[:, None]).any(0)
    return _share(torch.cat(precise)), _share(covered)


def _rounded(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (n, m), with all intermediate results rounded to float16. Tiles that overflow use float32."""
    return torch.cat([_rounded_tile(x, part) for part in y.split(TILE)], 1)


def _rounded_tile(x: Tensor, y: Tensor) -> Tensor:
    u, v = _half(x), _half(y)
    with float32_products():
        squared = _half(_half(_half(u.square()).sum(1))[:, None] - _half(2 * _half(u @ v.T)))
        squared = _half(squared + _half(_half(v.square()).sum(1))[None, :]).clamp_min_(0)
        if not squared.isfinite().all():
            squared = (x.square().sum(1)[:, None] - 2 * x @ y.T + y.square().sum(1)[None, :]).clamp_min_(0)
    return squared


def _half(value: Tensor) -> Tensor:
    return value.half().float()
