"""CMMD: its definition pair by pair, and what is known of two directions."""

import math

import pytest
import torch

from evaluations.metric import Unavailable
from evaluations.metrics import DEFAULT, cmmd
from evaluations.metrics.cmmd import CMMD, squared_mmd


def features(seed, count, dim=24, mean=0.3):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + mean


def brute_force(x, y, sigma):
    x, y = ([row.double() / row.double().norm() for row in v] for v in (x, y))

    def mean_kernel(u, v):
        return sum(math.exp(-float((a - b).square().sum()) / (2 * sigma**2)) for a in u for b in v) / (len(u) * len(v))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.mark.parametrize("sigma", [10.0, 0.5])
@pytest.mark.parametrize("tile", [2048, 7])
def test_equal_to_the_definition(monkeypatch, tile, sigma):
    monkeypatch.setattr(cmmd, "TILE", tile)
    x, y = features(0, 30), features(1, 41, mean=0.5)
    assert squared_mmd(x, y, sigma) == pytest.approx(brute_force(x, y, sigma), rel=1e-9)


def test_two_directions_at_a_right_angle():
    x, y = torch.tensor([[3.0, 0.0]]).repeat(5, 1), torch.tensor([[0.0, 0.1]]).repeat(7, 1)
    (value,) = CMMD().measure([x, y], torch.device("cpu")).values()
    assert value == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-12)  # |x - y|^2 = 2, sigma 10, scale 1000


def test_equal_sets_have_no_distance_and_others_have_one():
    x = features(0, 50)
    assert abs(squared_mmd(x, x.flip(0) * 3)) < 1e-15
    assert squared_mmd(x, features(0, 50, mean=0.8)) > squared_mmd(x, features(0, 50, mean=0.4)) > 0


def test_features_without_a_direction_are_named():
    x = features(0, 5)
    x[3] = 0
    with pytest.raises(Unavailable, match="image 3 of the reference has features that are all zero"):
        squared_mmd(features(1, 5), x)


def test_it_is_measured_on_request_only():
    assert "cmmd" not in DEFAULT
