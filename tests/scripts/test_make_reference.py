"""Reference batches as a user makes them."""

import functools
import json
import re

import numpy as np
import pytest
from helpers import TINY, random_images
from PIL import Image

from sag.data import NpzImages
from scripts import evaluate, make_reference


@pytest.fixture
def script(run_script):
    return functools.partial(run_script, evaluate.main, "evaluate", evaluate.EvaluateConfig)


@pytest.fixture
def reference_script(run_script):
    return functools.partial(run_script, make_reference.main, "make_reference", make_reference.MakeReferenceConfig)


@pytest.fixture
def batches(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=random_images(0, 600), arr_1=np.arange(600) % 10)
    np.savez(tmp_path / "reference.npz", arr_0=random_images(1, 700))
    return [*TINY, f"samples={tmp_path / 'samples.npz'}", f"reference={tmp_path / 'reference.npz'}"]


def test_reference_of_a_folder_of_any_images(reference_script, script, tmp_path):
    (tmp_path / "photos/a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(30):
        picture = Image.fromarray(rng.integers(0, 256, (20 + i % 3, 24, 3), dtype=np.uint8))
        picture.save(tmp_path / f"photos/a/{i}.{'jpg' if i % 2 else 'png'}")
    data = ["data=folder", f"data.path={tmp_path / 'photos'}", "data.size=8"]
    printed = reference_script(*TINY, *data, "num_images=10", f"out={tmp_path / 'reference.npz'}")
    assert "statistics of 30 images, 10 images" in printed
    assert len(NpzImages(tmp_path / "reference.npz")) == 10
    found = script(*TINY, f"samples={tmp_path / 'reference.npz'}", f"reference={tmp_path / 'reference.npz'}")
    assert re.search(r"^fid_30 +(0|-?\d\S*e-1\d)$", found, re.M)
    assert not list(tmp_path.glob(".*"))
    before = (tmp_path / "reference.npz").read_bytes()
    with pytest.raises(SystemExit, match="is there already; give another out"):
        reference_script(*TINY, *data, f"out={tmp_path / 'reference.npz'}")
    assert (tmp_path / "reference.npz").read_bytes() == before


def test_reference_of_an_npz_equals_scoring_its_images(reference_script, script, batches, tmp_path):
    data = ["data=npz", f"data.path={tmp_path / 'reference.npz'}", "num_images=700"]
    reference_script(*TINY, *data, f"out={tmp_path / 'made.npz'}")
    script(*batches, f"out={tmp_path / 'images.json'}")
    script(*batches[:-1], f"reference={tmp_path / 'made.npz'}", f"out={tmp_path / 'made.json'}")
    a, b = (json.loads((tmp_path / f"{name}.json").read_text())["metrics"] for name in ("images", "made"))
    assert a == pytest.approx(b, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=reference"], r"out=reference must end in \.npz"),
        (["limit=0", "out=x.npz"], "limit must be at least 1, got 0"),
        (["limit=701", "out=x.npz"], "limit=701 images are asked for, but the data has 700"),
        (["num_images=0", "out=x.npz"], "num_images must be at least 1, got 0"),
        (["data=fashion_mnist", "data.split=val", "out=x.npz"], "split must be train or test, got 'val'"),
        (["data=fashion_mnist", "data.folder=nowhere", "out=x.npz"], "no folder nowhere"),
        (["data=folder", "out=x.npz"], "path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_data_is_one_sentence(reference_script, batches, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    data = [] if any(a.startswith("data=") for a in arguments) else ["data=npz", f"data.path={tmp_path / 'reference.npz'}"]
    before = sorted({*tmp_path.iterdir()} - {tmp_path / "cache"})
    with pytest.raises(SystemExit) as caught:
        reference_script(*TINY, *data, *arguments)
    assert re.search(message, str(caught.value.code)), caught.value.code
    assert "\n" not in str(caught.value.code)
    assert sorted({*tmp_path.iterdir()} - {tmp_path / "cache"}) == before
