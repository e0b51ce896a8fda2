"""The rule of a folder: which files count, where classes come from, and what is refused or reported."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from sag.data import FolderImages, open_images


def fill(root, *names):
    """Write small images of different content; a name that ends in / is an empty folder."""
    for i, name in enumerate(names):
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".png", ".jpg", ".bmp")):
            Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(root / name)
        else:
            (root / name).write_bytes(b"something")
    return root


def names(source):
    return [file.relative_to(source.path).as_posix() for file in source.files]


def quietly(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return FolderImages(path, **options)


def test_hidden_files_and_folders_do_not_count(tmp_path):
    fill(tmp_path, "a.png", ".b.png", ".git/c.png", "__MACOSX/d.png", "__MACOSX/._a.png", "Thumbs.db", "notes.txt", "x/.e.png")
    assert names(quietly(tmp_path)) == ["a.png"]


def test_only_what_is_below_the_folder_can_hide_it(tmp_path):
    assert names(quietly(fill(tmp_path / ".cache" / "data", "a.png"))) == ["a.png"]


def test_the_order_is_that_of_the_names_folder_by_folder(tmp_path):
    fill(tmp_path, "b/10.png", "b/9.png", "a b/1.png", "a/2.png", "a/z/1.png", "B/1.png", "a/Z.PNG")
    found = names(quietly(tmp_path))
    assert found == ["B/1.png", "a/2.png", "a/Z.PNG", "a/z/1.png", "a b/1.png", "b/10.png", "b/9.png"]


def test_links_are_followed(tmp_path):
    store = fill(tmp_path / "store", "cats/1.png", "dogs/1.png", "one.png")
    data = fill(tmp_path / "data", "birds/1.png")
    (data / "cats").symlink_to(store / "cats")
    (data / "dogs").symlink_to("../store/dogs")
    (data / "birds/linked.png").symlink_to(store / "one.png")
    source = quietly(data)
    assert names(source) == ["birds/1.png", "birds/linked.png", "cats/1.png", "dogs/1.png"]
    assert source.labels().tolist() == [0, 0, 1, 2]
    (tmp_path / "whole").symlink_to(data)
    assert len(quietly(tmp_path / "whole")) == 4


def test_cycles_end(tmp_path):
    fill(tmp_path, "cats/1.png", "dogs/1.png", "dogs/deep/2.png")
    (tmp_path / "cats/up").symlink_to("..")
    (tmp_path / "dogs/deep/self").symlink_to(".")
    (tmp_path / "all").symlink_to(tmp_path)
    source = quietly(tmp_path)
    assert names(source) == ["cats/1.png", "dogs/1.png", "dogs/deep/2.png"]
    assert source.labels().tolist() == [0, 1, 1]


@pytest.mark.parametrize("target", ["cats", "../data/cats"])
def test_a_folder_that_is_reached_twice_is_refused(tmp_path, target):
    data = fill(tmp_path / "data", "cats/1.png", "dogs/1.png")
    (data / "kittens").symlink_to(target)
    with pytest.raises(ValueError, match=r"kittens is the same folder as .*cats, whose images would count twice"):
        FolderImages(data)


@pytest.mark.parametrize("name", ["b.png", "cats", "loop"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    fill(tmp_path, "a.png")
    (tmp_path / name).symlink_to("loop" if name == "loop" else "gone")
    with pytest.raises(ValueError, match=rf"{name} is a link to \w+, which does not exist; mend or remove it"):
        FolderImages(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / "notes.txt").symlink_to("gone")
    assert len(quietly(tmp_path)) == 1


def test_folders_and_pipes_with_the_names_of_images(tmp_path):
    fill(tmp_path, "a.png", "b.png/", "c.png/deep/")
    os.mkfifo(tmp_path / "d.png")
    assert names(quietly(tmp_path)) == ["a.png"]


def test_other_formats_are_counted_in_one_warning(tmp_path):
    fill(tmp_path, "a.png", "b.heic", "c.HEIC", "d.dcm", "e.npy", "plain", "readme.md", "labels.csv")
    with pytest.warns(
        UserWarning, match=r"files that are not read and are left out: 1 without suffix, 1 \.dcm, 2 \.heic, 1 \.npy$"
    ) as w:
        assert len(FolderImages(tmp_path)) == 1
    assert len(w) == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no images; expected \.png files, and found 1 without suffix, 1 \.dcm"):
        FolderImages(tmp_path)


CLASSES = {
    "folders": (["b/1.png", "a/1.png", "a/2.png"], [0, 0, 1]),
    "folders below class folders": (["b/x/1.png", "a/y/1.png", "a/2.png"], [0, 0, 1]),
    "names": (["n02_1.png", "n01_7.png", "n02_5.png"], [0, 1, 1]),
    "names in a single folder": (["images/n02_1.png", "images/n01_7.png"], [0, 1]),
    "folders win over names": (["b/x_1.png", "a/y_1.png"], [0, 1]),
    "no names": (["1.png", "2.png"], None),
    "the same beginning": (["img_1.png", "img_2.png"], None),
    "nothing before the _": (["_1.png", "_2.png"], None),
    "a single folder": (["images/1.png", "images/2.png"], None),
    "a class called train": (["train/1.png", "bus/1.png", "valley/1.png"], [0, 1, 2]),
    "other files only": (["1.png", "2.png", "annotations/1.json"], None),
}


@pytest.mark.parametrize("case", CLASSES)
def test_where_classes_come_from(tmp_path, case):
    files, expected = CLASSES[case]
    labels = quietly(fill(tmp_path, *files)).labels()
    assert (None if labels is None else labels.tolist()) == expected


UNCLEAR = {
    "holds images next to folders of images: loose.png; move each": ["a/1.png", "b/1.png", "loose.png"],
    r"holds train, val, which look like parts .* give one of them \(.*train\), or set data": ["train/a/1.png", "val/a/1.png"],
    r"holds Test_2, train2017, which": ["train2017/1.png", "Test_2/1.png"],
    r"holds train, val, which": ["train/1.png", "val/1.png", "extra/1.png"],
    r"holds one, two, which look like parts": ["one/cats/1.png", "one/dogs/1.png", "two/cats/1.png", "two/dogs/2.png"],
    r"holds data, which look like parts": ["data/cats/1.png", "data/dogs/1.png"],
    r"dogs holds no images that can be read, so its class would be lost": ["cats/1.png", "birds/1.png", "dogs/"],
    r"fish holds no images that can be read": ["cats/1.png", "fish/1.txt"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("message", UNCLEAR)
def test_what_could_mean_two_things_is_refused_and_can_be_said(tmp_path, message):
    fill(tmp_path, *UNCLEAR[message])
    with pytest.raises(ValueError, match=message) as caught:
        open_images(tmp_path)
    assert "data.labels=none" in str(caught.value)
    assert FolderImages(tmp_path, labels="none").labels() is None


def test_a_lost_class_in_names_is_reported(tmp_path):
    fill(tmp_path, "n01_1.png", "n02_1.png", "plain.png")
    with pytest.warns(UserWarning, match=r"no classes from their names, because 1 of 3 names .*; the first is plain\.png"):
        assert FolderImages(tmp_path).labels() is None


def test_classes_can_be_said(tmp_path):
    fill(tmp_path, "train/a_1.png", "val/a_1.png", "val/b_1.png")
    assert FolderImages(tmp_path, labels="folders").labels().tolist() == [0, 1, 1]
    assert FolderImages(tmp_path, labels="names").labels().tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="labels must be folders, names, none or null, got 'classes'"):
        FolderImages(tmp_path, labels="classes")
    fill(tmp_path, "loose.png")
    with pytest.raises(ValueError, match=r"loose\.png has no class before a _ in its name"):
        FolderImages(tmp_path, labels="names")
    with pytest.raises(ValueError, match="next to folders of images"):
        FolderImages(tmp_path, labels="folders")


@pytest.mark.parametrize("options", [{"size": 0}, {"size": [4]}, {"size": [4, 4.5]}, {"size": "big"}])
def test_sizes_that_are_none_are_named(tmp_path, options):
    with pytest.raises(ValueError, match=r"size must be a number or \[height, width\] in pixels"):
        FolderImages(fill(tmp_path, "a.png"), **options)


@pytest.mark.parametrize("value_range", [[1], [3, 3], [0, float("nan")], [0, float("inf")], ["a", "b"], [-1e308, 1e308]])
def test_ranges_that_are_none_are_named(tmp_path, value_range):
    with pytest.raises(ValueError, match=r"value_range must be \[low, high\] with low below high"):
        FolderImages(fill(tmp_path, "a.png"), value_range=value_range)


def test_a_file_that_vanishes_is_named(tmp_path):
    source = FolderImages(fill(tmp_path, "a.png", "b.png"))
    (tmp_path / "b.png").unlink()
    for read in (lambda: source.read(0, 2), lambda: source.fingerprint, source.verify):
        with pytest.raises(ValueError, match=r"b\.png cannot be read \(No such file or directory\)"):
            read()


def test_other_sizes_are_found_before_any_work(tmp_path):
    fill(tmp_path, *[f"{i:02d}.png" for i in range(20)])
    Image.new("RGB", (9, 9)).save(tmp_path / "19.png")
    with pytest.raises(ValueError, match=r"19\.png is 9x9, but 00\.png is 4x5"):
        FolderImages(tmp_path).verify()
