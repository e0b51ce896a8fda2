"""Memorisation: all pairs by brute force, copies of either half, and 0.5 for new images."""

import pytest
import torch

from evaluations.metrics import DEFAULT, memorisation
from evaluations.metrics.memorisation import Memorisation, nearest, share_nearer


def features(seed, count, dim=12):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def measured(samples, reference):
    (value,) = Memorisation().measure([samples, reference], torch.device("cpu")).values()
    return value


def brute_force(samples, train, real):
    near = [[float((row.double() - train.double()).square().sum(1).min()) for row in v] for v in (samples, real)]
    return sum((a < b) + (a == b) / 2 for a in near[0] for b in near[1]) / (len(samples) * len(real))


@pytest.mark.parametrize("tile", [1024, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_brute_force(monkeypatch, tile, ties):
    monkeypatch.setattr(memorisation, "TILE", tile)
    samples, train, real = (features(seed, count, 3) for seed, count in ((0, 50), (1, 40), (2, 30)))
    if ties:
        samples, train, real = samples.round(), train.round(), real.round()
    found = share_nearer(samples, train, real)
    assert found == pytest.approx(brute_force(samples, train, real), abs=1e-15)
    assert 0 < found < 1


def test_copies_of_each_half_have_the_values_that_the_docs_say():
    reference = features(0, 200)
    assert measured(reference[0::2], reference) == 1
    assert measured(reference[1::2], reference) == 0.5
    assert measured(reference, reference) == 0.75
    assert measured(features(1, 100) + 100, reference) == 0


def test_new_images_have_one_half():
    values = [measured(features(3 * seed, 300), features(3 * seed + 1, 400)) for seed in range(1, 9)]
    assert sum(values) / 8 == pytest.approx(0.5, abs=0.02)  # the standard error is 0.008


def test_a_copy_has_distance_zero_far_from_the_origin():
    train = features(0, 500) + 1000
    assert nearest(train[:50], train).max() == 0
    assert nearest(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]])).tolist() == [25]


def test_it_is_measured_on_request_only():
    assert "memorisation" not in DEFAULT
