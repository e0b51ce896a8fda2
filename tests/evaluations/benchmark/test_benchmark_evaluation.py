"""The cost of the evaluation next to NumPy and SciPy."""

import pytest

from evaluations.benchmark import evaluation
from evaluations.benchmark.evaluation import PrecisionRecall, benchmark_evaluation
from evaluations.neighbours import precision_recall


def test_every_stage_is_measured_and_agrees_with_the_plain_version(capsys):
    seen = []
    found = benchmark_evaluation([200, 400], batch_size=2, device="cpu", reference=300, dimensions=64, watch=seen.append)
    assert capsys.readouterr() == ("", "")
    assert seen == [*found.precision_recall, found.frechet, found.inception]
    assert [(row.samples, row.reference) for row in found.precision_recall] == [(200, 300), (400, 300)]
    few, many = found.precision_recall
    assert few.seconds_of_products > 0
    assert many.seconds_of_products is None  # more samples than the reference has: they would not fit
    assert min(row.seconds_of_differences for row in found.precision_recall) > 0
    assert found.frechet.relative_difference < 1e-9
    assert found.inception.images_per_second > 0
    x, y = evaluation._features(1, 200, 64), evaluation._features(2, 300, 64)
    assert evaluation._numpy_products(x.numpy(), y.numpy()) == pytest.approx(precision_recall(x, y))


def test_a_line_tells_what_took_how_long():
    row = PrecisionRecall(10, 20, 2.0, 3 * 2**20, 2**20, 64, 40.0, 6.0)
    assert row.describe() == (
        "precision and recall, 10 x 20, 64 dimensions: 2.0 s, peak 3 MiB, 1 of them before the call; NumPy by differences 40 s "
        "(from 100 rows), 20 times as long; NumPy by matrix products in float64 6.0 s, 3.0 times as long"
    )
    row = PrecisionRecall(30, 20, 2.0, None, None, 64, 40.0)
    assert row.describe() == (
        "precision and recall, 30 x 20, 64 dimensions: 2.0 s; NumPy by differences 40 s (from 100 rows), 20 times as long"
    )


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [([3], {}, "^samples must be at least 10, got 3$"), ([10], {"batch_size": 0}, "^batch_size must be at least 1, got 0$")],
)
def test_bad_arguments_are_one_sentence(samples, options, message):
    with pytest.raises(ValueError, match=message):
        benchmark_evaluation(samples, device="cpu", **options)
