"""The cost of guided sampling, on a network small enough to measure here."""

import pytest
import torch
from helpers import small_classifier, small_denoiser
from torch.utils.flop_counter import FlopCounterMode

from evaluations.benchmark.sampling import benchmark_sampling
from sag.diffusion import DDIM, DDPM
from sag.guidance import ClassifierGuidance, SelfAttentionGuidance


def measured(**options):
    classifier = small_classifier()
    guidance = {"sag": SelfAttentionGuidance(0.3, "middle", 1.0), "classifier": ClassifierGuidance(classifier, 1.0)}
    denoiser = small_denoiser(steps=1000, num_classes=4)
    given = {"sampler": DDPM(50), "helpers": [classifier], "rounds": 1, "device": "cpu", **options}
    return benchmark_sampling(denoiser, guidance, **given)


def test_there_is_a_row_for_every_case_and_its_numbers_belong_together(capsys):
    found = measured(precisions=["float32", "bfloat16"], batch_size=3)
    assert capsys.readouterr() == ("", "")
    assert (found.batch_size, found.rounds, found.steps) == (3, 1, 50)
    assert [(row.guidance, row.precision, row.compiled, row.passes_per_step) for row in found.rows] == [
        (guidance, precision, False, passes)
        for precision in ("float32", "bfloat16")
        for guidance, passes in (("none", 1), ("sag", 2), ("sag + classifier", 2))
    ]
    none, sag, classifier = found.rows[:3]
    assert sag.flop_per_step == pytest.approx(2 * none.flop_per_step, rel=0.01)
    assert classifier.flop_per_step > 1.1 * sag.flop_per_step
    assert none.time_ratio == none.memory_ratio == 1
    for row in found.rows:
        assert row.peak_memory > 1e8
        assert row.images_per_second == pytest.approx(3 / (50 * row.seconds_per_step))
        assert row.flop_per_second == pytest.approx(row.flop_per_step / row.seconds_per_step)
        assert row.share_of_matmul == pytest.approx(row.flop_per_second / row.matmul_flop_per_second)
    assert sag.time_ratio == pytest.approx(sag.seconds_per_step / none.seconds_per_step)
    lines = found.describe().splitlines()
    assert "images/s (50 steps)" in lines[0]
    assert [line.split()[:2] for line in lines[1:3]] == [["none", "float32"], ["sag", "float32"]]


def test_the_steps_of_the_sampler_count():
    assert measured(sampler=DDIM("ddim10"), precisions=["float32"]).steps == 10


def test_flop_of_a_convolution_are_counted_right():
    with FlopCounterMode(display=False) as counter:
        torch.nn.Conv2d(3, 8, 3, padding=1)(torch.zeros(2, 3, 10, 10))
    assert counter.get_total_flops() == 2 * 2 * 8 * 100 * 27


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0$"),
        ({"rounds": "many"}, "^rounds must be a whole number, got 'many'$"),
        ({"precisions": ["float16"]}, "^precision=float16 needs a GPU"),
        ({"precisions": ["float8"]}, "^precision must be one of float32, bfloat16, float16, got 'float8'$"),
    ],
)
def test_bad_arguments_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        measured(**options)
