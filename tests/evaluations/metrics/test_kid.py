"""KID: torch-fidelity's numbers, and no distance between equal distributions."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluations.metrics.kid import kernel_distance


def features(seed, count, mean=0.0):
    return (np.random.default_rng(seed).standard_normal((count, 24)) + mean).astype(np.float32)


def test_equal_to_torch_fidelity():
    x, y = features(0, 300), features(1, 250, 0.3)
    theirs = kid_features_to_metric(
        torch.from_numpy(x).double(), torch.from_numpy(y).double(), kid_subsets=7, kid_subset_size=100, rng_seed=2020,
        kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, verbose=False,
    )  # fmt: skip
    expected = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
    assert kernel_distance(x, y, 7, 100) == pytest.approx(expected, rel=1e-9)


def test_unbiased():
    mean, deviation = kernel_distance(features(0, 3000), features(1, 3000), 50, 200)
    assert abs(mean) < 3 * deviation / 50**0.5
    assert kernel_distance(features(0, 3000), features(1, 3000, 1.0), 50, 200)[0] > 10 * deviation


def test_small_sets_are_used_whole():
    x, y = features(0, 30), features(1, 40)
    assert kernel_distance(x, x, 3, 1000)[1] < 1e-12
    assert kernel_distance(x, y, 3, 1000)[1] > 0
