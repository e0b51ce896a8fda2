"""Inception Score: its definition, ADM's chunks, torch-fidelity's splits."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from evaluations.metrics.inception_score import InceptionScore


def naive(logits, bounds):
    scores = []
    for start, stop in bounds:
        p = np.exp(logits[start:stop].astype(np.float64))
        p /= p.sum(1, keepdims=True)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0, keepdims=True)))).sum(1).mean()))
    return np.mean(scores)


def streamed(logits, step, **options):
    score = InceptionScore(len(logits), **options)
    for start in range(0, len(logits), step):
        score.update(start, logits[start : start + step])
    return score.score()


def some_logits(count, classes=30):
    return (np.random.default_rng(0).standard_normal((count, classes)) * 3).astype(np.float32)


@pytest.mark.parametrize("count", [3, 4999, 5000, 5001, 12345])
def test_chunks_of_5000_in_file_order(count):
    logits = some_logits(count)
    bounds = [(start, min(start + 5000, count)) for start in range(0, count, 5000)]
    for step in (700, 5000):
        assert streamed(logits, step) == pytest.approx(naive(logits, bounds), rel=1e-10)


def test_batches_may_come_in_any_order():
    logits, score = some_logits(6000), InceptionScore(6000)
    for start in reversed(range(0, 6000, 500)):
        score.update(start, logits[start : start + 500])
    assert score.score() == pytest.approx(naive(logits, [(0, 5000), (5000, 6000)]), rel=1e-10)


@pytest.mark.parametrize("shuffle", [False, True])
def test_splits_are_those_of_torch_fidelity(shuffle):
    logits = some_logits(1234)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=shuffle, rng_seed=2020)
    assert streamed(logits, 100, splits=10, shuffle=shuffle) == pytest.approx(theirs["inception_score_mean"], rel=1e-10)


def test_known_values_and_extremes():
    assert streamed(np.zeros((10, 8)), 3) == pytest.approx(1, rel=1e-14)
    certain = 1e4 * np.eye(8)[np.arange(80) % 8]  # exp would overflow
    assert streamed(certain, 7) == pytest.approx(8, rel=1e-12)


def test_order_matters_by_definition():
    certain = 50 * np.eye(10)[np.arange(20000) // 2000]
    assert streamed(certain, 500) < 0.5 * streamed(certain, 500, shuffle=True)


def test_impossible_splits_are_refused():
    with pytest.raises(ValueError, match="cannot cut 5 images into 6 splits"):
        InceptionScore(5, splits=6)
