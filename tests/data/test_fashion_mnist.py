"""Datasets known by name: read from idx files, gzipped or plain."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
from local_server import Server

from sag.data import fashion_mnist as module
from sag.data.fashion_mnist import fashion_mnist
from sag.storage import cache_folder


def write_idx(folder, packed, count=5):
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">4I", 2051, count, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2I", 2049, count) + bytes(range(count)),
        }
        for name, content in files.items():
            if packed:
                with gzip.open(folder / f"{name}.gz", "wb") as file:
                    file.write(content)
            else:
                (folder / name).write_bytes(content)
    return images


@pytest.mark.parametrize("packed", [True, False])
def test_files_of_a_folder(tmp_path, packed):
    images = write_idx(tmp_path / "idx", packed)
    source = fashion_mnist("test", str(tmp_path / "idx"))
    assert source.shape == (5, 32, 32, 1)
    found = source.read(0, 5)
    assert np.array_equal(found[:, 2:30, 2:30, 0], images)
    assert found.sum() == images.sum()  # the margin is black
    assert fashion_mnist("train", str(tmp_path / "idx"), size=28).shape == (5, 28, 28, 1)


def test_each_folder_is_its_own_data(tmp_path):
    write_idx(tmp_path / "first", True, count=5)
    write_idx(tmp_path / "second", True, count=7)
    counts = [len(fashion_mnist("test", str(tmp_path / name))) for name in ("first", "second", "first")]
    assert counts == [5, 7, 5]


def test_files_replaced_with_a_kept_time_are_seen(tmp_path):
    folder = tmp_path / "idx"
    write_idx(folder, packed=False)
    fashion_mnist("test", str(folder))
    path = folder / "t10k-images-idx3-ubyte"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[16:] = bytes(len(content) - 16)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fashion_mnist("test", str(folder)).read(0, 5).sum() == 0


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server that has the files, and their contents by name."""
    write_idx(tmp_path / "idx", packed=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "idx").iterdir()}
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(module, "MD5", {name[:-3]: hashlib.md5(content).hexdigest() for name, content in files.items()})
    with Server(files) as server:
        monkeypatch.setattr(module, "MIRROR", server.url)
        yield server


def test_files_are_downloaded_once_to_where_earlier_versions_kept_them(tmp_path, mirror):
    for _ in range(2):
        assert np.array_equal(fashion_mnist("test").read(0, 5), fashion_mnist("test", str(tmp_path / "idx")).read(0, 5))
    assert len(mirror.asked) == 2
    names = ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert sorted(path.name for path in (cache_folder() / "datasets/FashionMNIST/raw").glob("*.gz")) == names


def test_another_file_than_the_published_one_is_refused(mirror):
    name = "train-images-idx3-ubyte.gz"
    mirror.content[name] = gzip.compress(gzip.decompress(mirror.content[name])[:-1] + b"?")
    with pytest.raises(OSError, match=rf"could not download .*{name}: .*its md5 starts with .*give the folder of its files"):
        fashion_mnist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-20], "train-images-idx3-ubyte.gz, a file of Fashion-MNIST, is damaged"),
        (lambda content: b"<html>", "is damaged"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), "is damaged or no file of Fashion-MNIST"),
        (lambda content: gzip.compress(struct.pack(">4I", 2051, 1, 8, 8) + bytes(64)), "no file of Fashion-MNIST"),
        (lambda content: gzip.compress(b""), "no file of Fashion-MNIST"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(tmp_path, change, message):
    write_idx(tmp_path / "idx", packed=True)
    path = tmp_path / "idx/train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        fashion_mnist(folder=str(tmp_path / "idx"))


def test_bad_requests_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split must be train or test, got 'validation'"):
        fashion_mnist("validation")
    with pytest.raises(ValueError, match="size must be at least 28, got 16"):
        fashion_mnist(size=16)
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere; it should hold train-images-idx3-ubyte"):
        fashion_mnist(folder="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        fashion_mnist(folder=str(tmp_path / "empty"))
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(module, "MIRROR", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"could not download http.*gz: .*, install Debian's package dataset-fashion-mnist, or"):
        fashion_mnist()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    write_idx(tmp_path / "idx", packed=True)
    monkeypatch.setenv("SAG_CACHE", "/proc/nope")
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "none")
    assert len(fashion_mnist(folder=str(tmp_path / "idx"))) == 5  # needs no cache
    with pytest.raises(OSError, match=r"^the cache folder /proc/nope cannot be written .*; set SAG_CACHE to a folder"):
        fashion_mnist()
