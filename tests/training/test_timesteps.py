"""Samplers of training steps: the expected loss stays that of uniform steps."""

import pytest
import torch

from sag.training import LossSecondMoment, Uniform


def filled(steps=8):
    sampler = LossSecondMoment(steps, history=3)
    for k in range(3):
        sampler.update(torch.arange(steps), torch.arange(1.0, steps + 1) * (k + 1))
    return sampler


def test_uniform():
    torch.manual_seed(0)
    t, weight = Uniform(10).draw(1000)
    assert set(t.tolist()) == set(range(10))
    assert weight.tolist() == pytest.approx([1.0] * 1000)


def test_second_moment_waits_for_a_full_history():
    sampler = LossSecondMoment(4, history=2)
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(torch.tensor([0, 1, 2, 3, 0, 1, 2]), torch.tensor([9.0, 1, 1, 1, 9, 1, 1]))
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    expected = 0.999 * torch.tensor([9.0, 1, 1, 1]) / 12 + 0.001 / 4
    assert sampler.probabilities().tolist() == pytest.approx(expected.tolist())


def test_only_the_last_losses_count():
    sampler = LossSecondMoment(2, history=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([100.0, 100, 1, 1, 1, 1]))
    assert sampler.probabilities().tolist() == pytest.approx([0.5, 0.5])


def test_weights_keep_the_mean():
    torch.manual_seed(0)
    sampler = filled()
    p = sampler.probabilities()
    assert float(p.sum()) == pytest.approx(1)
    t, weight = sampler.draw(200_000)
    losses = (t + 1).float() ** 2
    assert float((losses * weight).mean()) == pytest.approx(float((torch.arange(1.0, 9) ** 2).mean()), rel=0.02)
    assert float((losses * weight).std()) < float(((torch.arange(8)[torch.randint(8, (200_000,))] + 1).float() ** 2).std())


def test_the_state_is_all():
    one, two = filled(), LossSecondMoment(8, history=3)
    two.load(one.state())
    assert torch.equal(one.probabilities(), two.probabilities())
    for sampler in (one, two):
        sampler.update(torch.tensor([3]), torch.tensor([50.0]))
    assert torch.equal(one.probabilities(), two.probabilities())
