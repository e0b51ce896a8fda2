"""Samples on disk: ADM's quantisation, atomic writing and packing by streaming."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from sag import storage
from sag.data.tensors import quantise
from sag.sampling.shards import DamagedShard, Shard, check_shards, pack, read_samples, read_shard, write_shard


def images(n, start=0):
    return (np.arange(start * 48, (start + n) * 48) % 251).astype(np.uint8).reshape(n, 4, 4, 3)


def test_quantisation_truncates_as_adm_does():
    x = torch.linspace(-1.2, 1.2, 4001).view(1, 1, 1, -1)
    expected = np.trunc(np.clip((x.numpy() + 1) * np.float32(127.5), 0, 255)).astype(np.uint8)
    assert np.array_equal(quantise(x), np.repeat(expected.transpose(0, 2, 3, 1), 3, 3))  # one channel is repeated
    assert quantise(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)
    exact = torch.tensor([-1.0, 0.0, 0.999, 1.0]).view(1, 1, 1, 4)
    assert quantise(exact)[..., 0].flatten().tolist() == [0, 127, 254, 255]


def shard(n, start=0, labels=True, settings="s", **changes):
    rows = np.arange(start, start + n)
    return replace(Shard(images(n, start), rows % 10 if labels else None, rows, settings, {"host": "here"}), **changes)


@pytest.fixture
def folder(tmp_path):
    return storage.LocalFolder(tmp_path / "run")


def written(folder, *shards):
    names = [f"shards/{i}.npz" for i in range(len(shards))]
    for name, content in zip(names, shards, strict=True):
        write_shard(folder, name, content)
    return names


def test_packed_shards_are_what_numpy_reads(folder):
    names = written(folder, shard(4), shard(4, 4), shard(2, 8))
    beats = []
    contents = check_shards(folder, names, range(10), "s", lambda: beats.append(1))
    pack(folder, names, contents, "samples.npz", lambda: beats.append(1))
    assert contents.made == [{"host": "here"}] * 3
    assert len(beats) == 6
    with np.load(folder.path / "samples.npz", allow_pickle=False) as packed:
        assert list(packed) == ["arr_0", "arr_1"]
        assert np.array_equal(packed["arr_0"], images(10))
        assert packed["arr_1"].tolist() == list(range(10))
    found, labels = read_samples(folder.path / "samples.npz")
    assert np.array_equal(found, images(10))
    assert labels.tolist() == list(range(10))


def test_packing_twice_gives_the_same_bytes_wherever_the_shards_were_made(folder):
    names = written(folder, shard(3, labels=False))
    pack(folder, names, check_shards(folder, names, range(3), "s"), "a.npz")
    written(folder, shard(3, labels=False, made={"host": "elsewhere", "seconds": 3}))
    pack(folder, names, check_shards(folder, names, range(3), "s"), "b.npz")
    assert folder.read("a.npz") == folder.read("b.npz")
    assert read_samples(folder.path / "a.npz")[1] is None


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([shard(3)], "do not hold the samples asked for; remove its folder shards"),
        ([shard(2), shard(2, 3)], "do not hold the samples asked for"),
        ([shard(2), shard(2, 2, settings="t")], r"shards/1\.npz is a shard of a run with other settings"),
        ([shard(2), shard(2, 2, images=images(2))], "samples 0 and 2 in .* are identical"),
    ],
)
def test_what_does_not_fit_is_not_packed(folder, shards, message):
    names = written(folder, *shards)
    with pytest.raises(ValueError, match=message):
        check_shards(folder, names, range(4), "s")


def test_every_changed_byte_and_every_cut_is_found(folder):
    (name,) = written(folder, shard(3))
    content, expected = folder.read(name), read_shard(folder, name).checksum()
    rng = np.random.default_rng(0)
    harmless, named = 0, set()
    for place in rng.choice(len(content), 300, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        folder.write(name, bytes(flipped))
        try:
            found = read_shard(folder, name)
        except DamagedShard as error:
            named.add(error.name)
        else:
            harmless += 1
            assert found.checksum() == expected  # in a date or a part of the archive that nobody reads
    assert harmless < 150
    assert named == {name}
    for size in (0, 10, len(content) // 2, len(content) - 1):
        folder.write(name, content[:size])
        with pytest.raises(DamagedShard, match=r"shards/0\.npz is damaged"):
            read_shard(folder, name)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway():
        with storage.atomic(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [None, errno.EPERM])
def test_a_file_is_created_once_also_without_hard_links(folder, monkeypatch, error):
    if error:

        def no_links(source, path):
            raise OSError(error, "not permitted")

        monkeypatch.setattr(os, "link", no_links)
    assert [folder.create("file", content) for content in (b"1", b"2")] == [True, False]
    assert folder.read("file") == b"1"
    assert [path.name for path in folder.path.iterdir()] == ["file"]
