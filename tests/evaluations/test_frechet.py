"""Fréchet distance: against scipy's sqrtm, the singular values of the data, and closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from evaluations.batches import open_batch
from evaluations.frechet import Moments, Statistics, frechet_distance


def features(seed, count, dim, mean=0.0):
    rng = np.random.default_rng(seed)
    scales = np.exp(np.linspace(0, -5, dim))  # a spectrum that falls as that of real features does
    return (rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim))) * scales / dim**0.5 + mean


def statistics(x):
    return Statistics(x.mean(0), np.cov(x, rowvar=False), len(x))


@pytest.mark.parametrize("dim", [1, 2, 64, 400])
def test_full_rank_equals_the_matrix_square_root(dim):
    a, b = (Statistics(s.mean, np.atleast_2d(s.covariance)) for s in map(statistics, (features(i, 1500, dim) for i in (0, 1))))
    delta = a.mean - b.mean
    truth = delta @ delta + np.trace(a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real)
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(40, 70), (70, 40), (40, 900), (2, 2)])
def test_fewer_images_than_dimensions_equal_the_svd_truth(n, m):
    x, y = features(0, n, 300), features(1, m, 300)
    overlap = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T, compute_uv=False).sum() / ((n - 1) * (m - 1)) ** 0.5
    a, b = statistics(x), statistics(y)
    delta = a.mean - b.mean
    truth = delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("count", [2, 50, 1000])
def test_the_distance_to_itself_is_nothing_and_never_less(count):
    s = statistics(features(3, count, 200, mean=10))
    assert 0 <= frechet_distance(s, s) < 1e-9


def random_orthogonal(dim):
    return np.linalg.qr(np.random.default_rng(5).standard_normal((dim, dim)))[0]


def with_eigenvalues(values):
    q = random_orthogonal(len(values))
    covariance = q * np.asarray(values, float) @ q.T
    return (covariance + covariance.T) / 2


IMPOSSIBLE = {
    "a negative variance": (np.diag([1.0, 1, -3]), r"is not positive semidefinite: its eigenvalues reach from -3 to 1"),
    "no variance": (np.array([[0.0, 1], [1, 0]]), "is not positive semidefinite: its eigenvalues reach from -1 to 1"),
    "all negative": (-np.eye(3), "is not positive semidefinite: its eigenvalues reach from -1 to -1"),
    "one dimension": (np.array([[-2.0]]), "is not positive semidefinite"),
    "a correlation beyond 1": (
        np.array([[1.0, 2], [2, 1]]),
        "is not positive semidefinite: .* from -1 to 3",
    ),
    "one of many": (with_eigenvalues([*np.linspace(0.1, 5, 299), -0.01]), "is not positive semidefinite: .* from -0.01 to 5"),
    "few dimensions": (
        with_eigenvalues([0.0] * 250 + [1.0] * 49 + [-1e-3]),
        "is not positive semidefinite: .* from -0.001 to",
    ),
    "not symmetric": (np.array([[1.0, 0.5], [0.4, 1]]), r"is not symmetric: entries mirrored .* differ by up to 0\.1"),
    "far off the diagonal": (np.eye(300) + 0.1 * np.eye(300, k=299), "is not symmetric"),
    "infinite": (np.array([[1.0, 0], [0, np.inf]]), "holds values that are not finite"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
@pytest.mark.parametrize("other", [1, 3])
def test_the_covariance_of_no_data_is_refused(case, other):
    covariance, message = IMPOSSIBLE[case]
    bad = Statistics(np.zeros(len(covariance)), covariance)
    good = Statistics(np.zeros(len(covariance)), other * np.eye(len(covariance)))
    for pair in ((bad, good), (good, bad), (bad, bad)):
        with pytest.raises(ValueError, match=f"^a covariance {message}"):
            frechet_distance(*pair)
    named = Statistics(bad.mean, bad.covariance, source="reference.npz (mu, sigma)")
    with pytest.raises(ValueError, match=rf"^the covariance in reference\.npz \(mu, sigma\) {message}"):
        frechet_distance(good, named)


def test_the_file_of_impossible_statistics_is_named(tmp_path):
    for name, last in {"good": 1.0, "bad": -60.0}.items():
        np.savez(tmp_path / f"{name}.npz", mu=np.zeros(3), sigma=np.diag([1.0, 2.0, last]))
    good, bad = (open_batch(tmp_path / f"{name}.npz").pool for name in ("good", "bad"))
    with pytest.raises(ValueError, match=rf"the covariance in {tmp_path}/bad\.npz \(mu, sigma\) is not positive semidefinite"):
        frechet_distance(bad, good)


@pytest.mark.parametrize("count", [60, 250, 5000])
def test_statistics_that_were_stored_in_float32_are_taken(count):
    x, y = features(0, count, 200), features(1, 900, 200)
    truth = frechet_distance(statistics(x), statistics(y))
    rounded = Statistics(x.mean(0), np.cov(x, rowvar=False).astype(np.float32).astype(np.float64))
    computed = Statistics(x.mean(0), np.cov(x.astype(np.float32), rowvar=False, dtype=np.float32).astype(np.float64))
    for s in (rounded, computed):
        assert frechet_distance(s, statistics(y)) == pytest.approx(truth, rel=2e-3)
        assert 0 <= frechet_distance(s, s) < 1e-3 * truth


def test_other_shapes_and_values_are_named():
    good = Statistics(np.zeros(3), np.eye(3))
    for bad, message in [
        (Statistics(np.zeros(3), np.eye(4)), r"a mean has shape \(3,\) and its covariance \(4, 4\)"),
        (Statistics(np.zeros((1, 3)), np.eye(3)), r"a mean has shape \(1, 3\) and its covariance \(3, 3\)"),
        (Statistics(np.zeros(0), np.zeros((0, 0))), r"a mean has shape \(0,\)"),
        (Statistics(np.array([0, np.nan, 0]), np.eye(3)), "a mean holds values that are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            frechet_distance(bad, good)


def test_closed_forms():
    eye = np.eye(5)
    a, b = Statistics(np.zeros(5), 4 * eye), Statistics(np.full(5, 2.0), 9 * eye)
    assert frechet_distance(a, b) == pytest.approx(5 * 4 + 5 * (3 - 2) ** 2, rel=1e-14)
    point = Statistics(np.ones(5), 0 * eye)
    assert frechet_distance(point, a) == pytest.approx(5 + 20, rel=1e-14)
    # commuting covariances: the sum of squared differences of the standard deviations
    c, d = np.arange(1.0, 6), np.arange(5.0, 0, -1)
    assert frechet_distance(Statistics(np.zeros(5), np.diag(c**2)), Statistics(np.zeros(5), np.diag(d**2))) == pytest.approx(
        ((c - d) ** 2).sum(), rel=1e-13
    )


@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_streamed_moments_equal_numpy(mean):
    x = features(0, 900, 50, mean).astype(np.float32)
    moments = Moments()
    for part in np.split(x, [1, 2, 300, 301, 850]):
        moments.update(part)
    found, covariance = moments.statistics(), np.cov(x.astype(np.float64), rowvar=False)
    assert found.count == 900
    assert np.abs(found.mean - x.astype(np.float64).mean(0)).max() <= 1e-14 * max(1, mean)
    assert np.abs(found.covariance - covariance).max() <= (1e-13 if mean == 0 else 1e-11) * np.abs(covariance).max()


def test_what_cannot_be_compared_is_said():
    one = Moments()
    one.update(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="a covariance needs at least 2 images, got 1"):
        one.statistics()
    with pytest.raises(ValueError, match="features of 4 and of 5 dimensions"):
        frechet_distance(Statistics(np.zeros(4), np.eye(4)), Statistics(np.zeros(5), np.eye(5)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(Statistics(np.zeros(2), np.full((2, 2), np.nan)), Statistics(np.zeros(2), np.eye(2)))
