"""Samples on disk: ADM's quantisation, atomic writing and packing by streaming."""

import numpy as np
import pytest
import torch

from sag import storage


def images(n, start=0):
    return (np.arange(start * 48, (start + n) * 48) % 251).astype(np.uint8).reshape(n, 4, 4, 3)


def test_quantisation_truncates_as_adm_does():
    x = torch.linspace(-1.2, 1.2, 4001).view(1, 1, 1, -1)
    expected = np.trunc(np.clip((x.numpy() + 1) * np.float32(127.5), 0, 255)).astype(np.uint8)
    assert np.array_equal(storage.quantise(x), expected.transpose(0, 2, 3, 1))
    assert storage.quantise(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)
    assert storage.quantise(torch.tensor([-1.0, 0.0, 0.999, 1.0]).view(1, 1, 1, 4)).flatten().tolist() == [0, 127, 254, 255]


def test_packed_shards_are_what_numpy_reads(tmp_path):
    shards = [tmp_path / f"{i}.npz" for i in range(3)]
    for i, (start, n) in enumerate([(0, 4), (4, 4), (8, 2)]):
        storage.write_shard(shards[i], images(n, start), [(start + k) % 10 for k in range(n)], range(start, start + n))
    storage.pack(shards, range(10), tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as packed:
        assert list(packed) == ["arr_0", "arr_1"]
        assert np.array_equal(packed["arr_0"], images(10))
        assert packed["arr_1"].tolist() == list(range(10))
    found, labels = storage.read_samples(tmp_path / "samples.npz")
    assert np.array_equal(found, images(10))
    assert labels.tolist() == list(range(10))


def test_packing_twice_gives_the_same_bytes(tmp_path):
    storage.write_shard(tmp_path / "0.npz", images(3), None, range(3))
    for name in ("a.npz", "b.npz"):
        storage.pack([tmp_path / "0.npz"], range(3), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert storage.read_samples(tmp_path / "a.npz")[1] is None


def test_a_missing_sample_is_noticed_and_nothing_is_written(tmp_path):
    storage.write_shard(tmp_path / "0.npz", images(3), None, [0, 1, 2])
    with pytest.raises(ValueError, match="do not hold the samples asked for"):
        storage.pack([tmp_path / "0.npz"], range(4), tmp_path / "samples.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["0.npz"]


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


def test_the_grid_tiles_row_by_row():
    tiles = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 2, 1), np.uint8)
    assert storage.grid(tiles)[::2, ::2, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
