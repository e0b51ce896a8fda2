"""Vendi: the eigenvalues of the whole kernel, and cases with a known number of different images."""

import numpy as np
import pytest

from evaluations.metric import Unavailable
from evaluations.metrics import DEFAULT
from evaluations.metrics.vendi import Directions


def vendi(features, part=13):
    directions = Directions()
    for start in range(0, len(features), part):
        directions.update(start, {"pool": features[start : start + part].astype(np.float32)})
    return directions.result().score()


@pytest.mark.parametrize("count", [20, 90])  # fewer and more images than dimensions
def test_equal_to_the_eigenvalues_of_the_kernel(count):
    x = (np.random.default_rng(0).standard_normal((count, 40)) + 0.5).astype(np.float32)
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / count).clip(1e-300)
    assert vendi(x) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-10)


def test_as_many_as_there_are_different_images():
    assert vendi(np.eye(30) * 7) == pytest.approx(30, rel=1e-12)
    assert vendi(np.eye(6).repeat(5, 0)) == pytest.approx(6, rel=1e-12)
    assert vendi(np.ones((30, 8))) == pytest.approx(1, rel=1e-12)
    # shares 3/4 and 1/4 of two kinds
    assert vendi(np.eye(2)[[0, 0, 0, 1]]) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)), rel=1e-12)


def test_parts_and_lengths_do_not_matter():
    x = np.random.default_rng(0).standard_normal((50, 9))
    assert vendi(x, 50) == pytest.approx(vendi(x * 2.0 ** np.arange(50)[:, None] / 2**25, 7), rel=1e-9)


def test_features_without_a_direction_are_named():
    x = np.ones((30, 4))
    x[[17, 20]] = 0
    with pytest.raises(Unavailable, match="image 17 of the samples has features that are all zero"):
        vendi(x)


def test_it_is_measured_on_request_only():
    assert "vendi" not in DEFAULT
