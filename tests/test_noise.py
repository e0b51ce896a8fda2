"""Noise and labels depend on (seed, i, step) only, and are what they should be."""

import numpy as np
import pytest
import torch

from sag.noise import SampleNoise, sample_labels

CPU = torch.device("cpu")


def source(seed=0, indices=range(8), shape=(3, 8, 8)):
    return SampleNoise(seed, indices, shape, CPU)


def test_a_sample_gets_the_same_noise_in_any_company():
    everyone, alone = source(), source(indices=[5])
    assert torch.equal(everyone.initial()[5], alone.initial()[0])
    assert torch.equal(everyone.step(17)[5], alone.step(17)[0])
    assert torch.equal(everyone.mask(17, (4, 4))[5], alone.mask(17, (4, 4))[0])
    assert sample_labels("random", 0, range(8), 10)[5] == sample_labels("random", 0, [5], 10)[0]


def test_seed_index_step_and_purpose_each_give_other_noise():
    draws = [source(s, [i]).step(t) for s in (0, 1) for i in (0, 1) for t in (0, 1)] + [
        source(0, [0]).initial(),
        source(0, [0]).mask(0, (8, 8)).expand(1, 3, 8, 8),
    ]
    flat = torch.stack([d.flatten() for d in draws])
    correlation = torch.corrcoef(flat) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.35  # 192 values each: five standard deviations


def test_noise_is_standard_normal():
    x = source(indices=range(500)).initial().double()
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    assert x.std().item() == pytest.approx(1, abs=0.01)
    assert (x**4).mean().item() == pytest.approx(3, abs=0.1)


def test_the_numbers_never_change():
    """A changed generator would make every published sample irreproducible."""
    np.testing.assert_allclose(source(123, [45], (1, 1, 3)).initial().flatten(), PINNED_INITIAL, rtol=1e-6)
    np.testing.assert_allclose(source(123, [45], (1, 1, 3)).step(7).flatten(), PINNED_STEP, rtol=1e-6)
    assert sample_labels("random", 123, range(40, 48), 1000) == PINNED_LABELS


PINNED_INITIAL = [-0.96094322, -2.0364709, 0.068687439]
PINNED_STEP = [0.88455486, 1.4236174, 0.65169281]
PINNED_LABELS = [654, 389, 215, 45, 756, 807, 724, 524]


def test_labels_are_uniform_balanced_or_given():
    drawn = np.bincount(sample_labels("random", 0, range(5000), 10), minlength=10)
    assert ((drawn - 500) ** 2 / 500).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert sample_labels("balanced", 0, range(12), 5) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert sample_labels([7, 2], 0, [0, 1, 2, 5], 10) == [7, 2, 7, 2]
    assert sample_labels(7, 0, [0, 1], 10) == [7, 7]
    assert sample_labels("none", 0, [0, 1], 10) is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("all", "random, balanced, none"),
        ([], "random, balanced, none"),
        ([10], r"in \[0, 10\)"),
        (-1, r"in \[0, 10\)"),
        ([1.5], "whole numbers"),
    ],
)
def test_impossible_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        sample_labels(labels, 0, [0], 10)


def test_an_impossible_seed_is_named():
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*64\), got -1"):
        source(seed=-1)
