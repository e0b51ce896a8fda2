"""Rows from the same noise: what is written, and what is refused before the work."""

import numpy as np
import pytest
from helpers import GOLDEN

from evaluations.study.compare import compare

SMALL = ["sampler=ddim", "sampler.steps=ddim2", "batch_size=10"]
SCORING = [
    "extractor=module",
    "extractor.network._target_=helpers.TinyNetwork",
    f"reference={GOLDEN / 'fashion_mnist_200.npz'}",
]


@pytest.fixture
def call(tmp_path):
    given = {"out": tmp_path / "out", "common": SMALL, "num_samples": 10, "device": "cpu", "scoring": SCORING}
    return lambda rows, **options: compare(rows, **{**given, **options})


def test_rows_begin_with_the_same_noise_and_there_are_masks_only_with_sag(call, tmp_path, capsys):
    found = call({"no guidance": ["guidance=[]"], "none again": ["guidance=[]"], "CFG": ["guidance=[cfg]"]})
    assert capsys.readouterr() == ("", "")
    assert [file.name for file in found.files] == ["samples.png", "scores.png", "table.md"]
    assert all(file.exists() for file in found.files)
    assert not (tmp_path / "out/masks.png").exists()
    names = ("no_guidance", "none_again", "cfg")
    first, second, third = (np.load(tmp_path / f"out/{name}/samples_10x32x32x3.npz")["arr_0"] for name in names)
    assert (first == second).all()
    assert (first != third).any()
    assert list(found.table.mean.index) == [run.row for run in found.runs] == ["no guidance", "none again", "CFG"]
    assert (tmp_path / "out/table.md").read_text().startswith("| 10 samples | seeds | FID |")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"a": []}, {"num_samples": 9}, "num_samples must be at least 10, got 9"),
        ({}, {}, "there are no rows to compare"),
        (
            {"a": [], "b": ["model=adm_imagenet64"]},
            {"scoring": []},
            r"these have fashion_mnist, https://.*\.npz",
        ),
        ({"a": ["guidance=[nothing]"]}, {}, "unknown guidance 'nothing'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(call, tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        call(rows, **options)
    assert not (tmp_path / "out").exists()
