"""Noise and labels depend on (seed, i, step) only, and are what they should be."""

from hashlib import sha256

import numpy as np
import pytest
import torch

from evaluations.reference import draw
from sag.noise import SampleNoise, sample_labels
from sag.training import Settings

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


def test_the_numbers_below_2_to_63_never_change():
    """As above, for all purposes, many steps, and seeds and indices up to the largest that once went through int64."""
    indices = [0, 1, 7, 2**31, 2**40 + 1, 2**63 - 1]
    digest = sha256()
    for seed in (0, 1, 123, 2**31, 2**32 + 5, 2**53 + 1, 2**63 - 1):
        n = source(seed, indices, (2, 3, 3))
        for x in (n.initial(), n.step(0), n.step(249), n.step(999), n.mask(0, (2, 2)), n.mask(999, (2, 2))):
            digest.update(x.numpy().tobytes())
        digest.update(repr(sample_labels("random", seed, indices, 1000)).encode())
    assert digest.hexdigest() == "d0a25f8e466fccdc9623bab7c798f4c50882bdc673fc9a96e9bc5683f5c803ec"


LARGE = [0, 1, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**63 + 2, 2**64 - 1025, 2**64 - 2, 2**64 - 1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed, index: source(seed, [index]).initial(),
        lambda seed, index: source(seed, [index]).step(3),
        lambda seed, index: source(seed, [index]).mask(3, (2, 2)),
        lambda seed, index: torch.tensor(sample_labels("random", seed, [index], 2**31)),
    ],
    ids=["initial", "step", "mask", "labels"],
)
def test_every_seed_and_index_up_to_2_to_64_has_its_own_stream(draw):
    streams = {draw(seed, index).numpy().tobytes() for seed in LARGE for index in LARGE}
    assert len(streams) == len(LARGE) ** 2
    assert torch.equal(draw(np.uint64(2**64 - 1), np.int64(5)), draw(2**64 - 1, 5))


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


@pytest.mark.parametrize("value", [-1, -(2**63), 2**64, 10**30, 1.5, 1e3, float("nan"), True, "3", None], ids=repr)
@pytest.mark.parametrize("labels", ["random", "balanced", "none", 3])
def test_impossible_seeds_and_indices_are_named_whatever_reads_them_first(value, labels):
    for read in (lambda s, i: source(s, [i]), lambda s, i: sample_labels(labels, s, [i], 10)):
        with pytest.raises(ValueError, match=r"^seed must be (a whole number )?in \[0, 2\*\*64\), got ") as caught:
            read(value, 0)
        assert str(caught.value).endswith(repr(value))
        with pytest.raises(ValueError, match=r"^sample index must be (a whole number )?in \[0, 2\*\*64\), got "):
            read(0, value)


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, True, "3"], ids=repr)
def test_training_tells_seeds_of_32_bits_apart_and_refuses_others(value):
    """[5 + 2**32, step 0] and [5, step 1] are the same entropy to NumPy's SeedSequence."""
    with pytest.raises(ValueError, match=r"^seed must be (a whole number )?in \[0, 2\*\*32\), got "):
        Settings(steps=1, batch_size=1, learning_rate=1.0, seed=value)
    assert Settings(steps=1, batch_size=1, learning_rate=1.0, seed=2**32 - 1).seed == 2**32 - 1


def test_the_images_of_a_reference_are_drawn_with_a_possible_seed():
    assert len({tuple(draw(5, 1000, seed)) for seed in LARGE}) == len(LARGE)
    with pytest.raises(ValueError, match=r"^seed must be in \[0, 2\*\*64\), got -1"):
        draw(5, 10, -1)
