"""Precision, recall, density and coverage: equal to brute force in float64, in every case where rounding could decide."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from evaluations import neighbours
from evaluations.neighbours import density_coverage, precision_recall
from evaluations.self_check import awkward_features, neighbour_truth


@pytest.mark.parametrize("tile", [2048, 64])
@pytest.mark.parametrize("case", range(4))
def test_equal_to_brute_force_exactly(monkeypatch, tile, case):
    monkeypatch.setattr(neighbours, "TILE", tile)
    samples, reference = list(awkward_features())[case]
    assert precision_recall(samples, reference) + density_coverage(samples, reference) == neighbour_truth(
        samples, reference, 3, 5
    )


def test_rows_without_a_safe_candidate_are_measured_whole(monkeypatch):
    # on a sphere of one radius around a row, all distances are equal but for rounding
    generator = torch.Generator().manual_seed(0)
    sphere = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator), dim=1)
    reference = torch.cat([torch.zeros(1, 64), sphere * 10]) + 100
    samples = torch.cat([reference[:1], torch.randn(40, 64, generator=generator) + 100])
    measured = []
    exact = neighbours._exact
    monkeypatch.setattr(neighbours, "_exact", lambda x, y: measured.append(len(y)) or exact(x, y))
    found = precision_recall(samples, reference) + density_coverage(samples, reference)
    assert len(reference) in measured  # a whole row
    assert found == neighbour_truth(samples, reference, 3, 5)


def test_scale_and_offset_do_not_matter():
    samples, reference = next(awkward_features())
    found = precision_recall(samples, reference)
    assert precision_recall(samples * 4096, reference * 4096) == found  # powers of two are exact
    assert precision_recall(samples / 4096, reference / 4096) == found


def test_which_argument_is_the_reference():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(400, 16, generator=generator)
    collapsed = reference[:1] + 0.01 * torch.randn(400, 16, generator=generator)
    precision, recall = precision_recall(collapsed, reference)
    assert precision > 0.99
    assert recall < 0.02
    density, coverage = density_coverage(collapsed, reference)
    assert density > coverage
    assert coverage < 0.5
    assert precision_recall(reference, collapsed) == (recall, precision)


def test_the_same_set_is_perfect():
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    assert precision_recall(x, x) == (1.0, 1.0)
    assert density_coverage(x, x)[1] == 1.0


def test_equal_to_torch_fidelity():
    generator = torch.Generator().manual_seed(0)
    reference, samples = torch.randn(500, 32, generator=generator), torch.randn(400, 32, generator=generator) * 0.9
    theirs = prc_features_to_metric(
        samples.double(), reference.double(), prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    assert precision_recall(samples, reference) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def float16_by_numpy(samples, reference, k):
    def distances(u, v):
        u, v = u.astype(np.float16), v.astype(np.float16)
        norms = [np.sum((w * w).astype(np.float32), axis=1).astype(np.float16) for w in (u, v)]
        product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(np.float16)
        return np.maximum(norms[0][:, None] - np.float16(2) * product + norms[1][None, :], np.float16(0))

    near_reference, near_samples = (np.sort(distances(x, x), axis=1)[:, k] for x in (reference, samples))
    across = distances(samples, reference)
    return (across <= near_reference).any(1).mean(), (across <= near_samples[:, None]).any(0).mean()


def test_float16_rounds_as_adm_does():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(600, 256, generator=generator) * 0.6
    samples = torch.rand(500, 256, generator=generator) * 0.6
    rounded = precision_recall(samples, reference, distance_dtype="float16")
    assert rounded == pytest.approx(float16_by_numpy(samples.numpy(), reference.numpy(), 3), abs=1e-12)
    exact = precision_recall(samples, reference)
    assert rounded != exact
    assert rounded[0] > exact[0]
    assert rounded[1] > exact[1]


def test_float16_overflow_is_computed_in_float32():
    samples, reference = (1000 * x for x in next(awkward_features()))
    found = precision_recall(samples, reference, distance_dtype="float16")
    assert found == pytest.approx(precision_recall(samples, reference), abs=0.02)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_bad_features_are_named(metric):
    x = torch.randn(10, 4)
    with pytest.raises(ValueError, match=r"nearest neighbours need more than \d samples, got 3"):
        metric(x[:3], x)
    with pytest.raises(ValueError, match=r"nearest neighbours need more than \d reference images, got 3"):
        metric(x, x[:3])
    broken = x.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(ValueError, match="features of the samples are not finite"):
        metric(broken, x)
