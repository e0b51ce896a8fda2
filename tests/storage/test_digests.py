"""Fingerprints see content, whatever the times say; digests are remembered for as long as a file is the same."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sag.data import ArrayImages, FolderImages, NpzImages, SelectedImages
from sag.storage import cache_folder, digests, remembered_digests


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", -(10**12))  # every file counts as old enough to be remembered


def write(path, value, like=None):
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    if like is not None:
        os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def test_a_replaced_image_of_the_same_size_and_time_is_seen(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.png", 10)
    write(folder / "b.png", 20)
    before, first = (folder / "a.png").stat(), FolderImages(folder).fingerprint
    assert FolderImages(folder).fingerprint == first
    write(folder / "a.png", 11, like=before)
    after = (folder / "a.png").stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    changed = FolderImages(folder)
    assert changed.fingerprint != first
    assert SelectedImages(changed, np.array([0])).fingerprint != SelectedImages(FolderImages(folder), np.array([1])).fingerprint


def test_a_copy_with_other_times_is_the_same_data(tmp_path):
    (tmp_path / "a").mkdir()
    write(tmp_path / "a/1.png", 10)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b/1.png", (0, 0))
    assert FolderImages(tmp_path / "a").fingerprint == FolderImages(tmp_path / "b").fingerprint
    options = [{}, {"size": 8}, {"size": 4}, {"grey": True}, {"size": 8, "labels": "none"}]
    assert len({FolderImages(tmp_path / "a", **option).fingerprint for option in options}) == len(options)
    (tmp_path / "b/1.png").rename(tmp_path / "b/2.png")
    assert FolderImages(tmp_path / "a").fingerprint != FolderImages(tmp_path / "b").fingerprint


def test_content_is_read_when_it_is_asked_for_and_then_once(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(5):
        write(folder / f"{i}.png", i)
    read = []

    def counted(path):
        read.append(path.name)
        return digests.file_digest(path)

    paths = sorted(folder.glob("*.png"))
    first = remembered_digests(paths, counted)
    assert remembered_digests(paths, counted) == first
    assert sorted(read) == [path.name for path in paths]
    write(paths[2], 99)
    assert remembered_digests(paths, counted) != first
    assert read[5:] == ["2.png"]
    monkeypatch.setattr("sag.data.folder_images.remembered_digests", lambda files: pytest.fail("too early"))
    FolderImages(folder)


def test_a_file_that_was_changed_just_now_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 10**12)
    write(tmp_path / "a.png", 1)
    remembered_digests([tmp_path / "a.png"])
    assert not (cache_folder() / "digests.sqlite").exists()


@pytest.mark.parametrize("kind", ["no folder", "no database", "a folder in its place"])
def test_a_cache_that_cannot_serve_costs_nothing_but_time(tmp_path, monkeypatch, kind):
    write(tmp_path / "a.png", 1)
    expected = remembered_digests([tmp_path / "a.png"])
    if kind == "no folder":
        monkeypatch.setenv("SAG_CACHE", "/proc/nope")
    else:
        monkeypatch.setenv("SAG_CACHE", str(tmp_path / "other"))
        (tmp_path / "other").mkdir()
        if kind == "no database":
            (tmp_path / "other/digests.sqlite").write_bytes(b"something else" * 100)
        else:
            (tmp_path / "other/digests.sqlite").mkdir()
    for _ in range(2):
        assert remembered_digests([tmp_path / "a.png"]) == expected


def test_names_of_any_bytes(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"), 1)
    assert FolderImages(folder).fingerprint == FolderImages(folder).fingerprint


def test_bytes_changed_in_place_are_found_though_the_file_states_the_old_checksum(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    assert NpzImages(path).fingerprint == NpzImages(path).fingerprint
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=r"x\.npz is not an npz, or is damaged \(Bad CRC-32"):
        _ = NpzImages(path).fingerprint
    with pytest.raises(ValueError, match=r"x\.npz is not an npz, or is damaged \(Bad CRC-32"):
        NpzImages(path).read(0, 1)


def test_arrays_of_another_shape_or_with_other_labels_are_other_data():
    images = np.zeros((2, 4, 8, 1), np.uint8)
    sources = [ArrayImages(images), ArrayImages(images.reshape(2, 8, 4, 1)), ArrayImages(images, np.array([0, 1]))]
    assert len({source.fingerprint for source in sources}) == 3
