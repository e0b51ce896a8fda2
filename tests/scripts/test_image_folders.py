"""A user's folder of images, in the programs: links, loose files, other formats, and labels of any shape."""

import warnings

import numpy as np
import pytest
from helpers import TINY
from PIL import Image

from sag.data import open_images
from scripts import evaluate, make_reference, train


@pytest.fixture
def folder(tmp_path):
    """Two classes, one of them a link, and a photograph in a format that is not read."""
    for place, value in (("store/cats", 50), ("data/dogs", 200)):
        (tmp_path / place).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((20, 30, 3), value + i, np.uint8)).save(tmp_path / place / f"{i}.png")
    (tmp_path / "data/cats").symlink_to("../store/cats")
    (tmp_path / "data/photo.heic").write_bytes(b"photograph")
    return tmp_path / "data"


def make(run_script, folder, *arguments):
    return run_script(
        make_reference.main, "make_reference", make_reference.MakeReferenceConfig, "data=folder", f"data.path={folder}",
        "data.size=16", *TINY, f"out={folder.parent / 'reference.npz'}", *arguments,
    )  # fmt: skip


def test_linked_classes_come_into_the_reference_and_other_formats_are_named_in_one_line(run_script, folder):
    with pytest.warns(UserWarning, match=r"left out: 1 \.heic$") as given:
        make(run_script, folder)
    assert len(given) == 1
    line = warnings.formatwarning(given[0].message, UserWarning, "images.py", 1)
    assert line == f"warning: {folder} holds files that are not read and are left out: 1 .heic\n"
    assert open_images(folder.parent / "reference.npz").labels().tolist() == [0] * 4 + [1] * 4


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_loose_file_stops_the_program_before_it_works(run_script, folder):
    Image.new("RGB", (20, 30)).save(folder / "loose.png")
    with pytest.raises(SystemExit, match=r"error: .*data holds images next to folders of images: loose\.png; move each into"):
        make(run_script, folder)
    make(run_script, folder, "data.labels=none")
    assert open_images(folder.parent / "reference.npz").labels() is None


PROGRAMS = {
    "train": (train.main, train.TrainConfig, ["data=npz", "data.path=FILE", "device=cpu", "out=OUT"]),
    "make_reference": (
        make_reference.main,
        make_reference.MakeReferenceConfig,
        ["data=npz", "data.path=FILE", *TINY, "out=OUT/reference.npz"],
    ),
    "evaluate": (evaluate.main, evaluate.EvaluateConfig, [*TINY, "samples=FILE", "reference=FILE"]),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_labels_that_are_none_stop_a_program_before_it_works(run_script, tmp_path, program):
    main, schema, arguments = PROGRAMS[program]
    np.savez(tmp_path / "x.npz", np.zeros((4, 32, 32, 1), np.uint8), np.eye(4))
    given = [a.replace("FILE", str(tmp_path / "x.npz")).replace("OUT", str(tmp_path / "out")) for a in arguments]
    with pytest.raises(SystemExit, match=r"error: arr_1 of .*x\.npz is float64 of shape \(4, 4\); expected labels"):
        run_script(main, program, schema, *given)
    assert not (tmp_path / "out").exists()
