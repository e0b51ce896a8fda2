"""An npz: what its headers may claim, what its zip may be, and how often it is inflated."""

import io
import zipfile

import numpy as np
import pytest

from evaluations.batches import open_batch
from sag.data import NpzImages

IMAGES = np.random.default_rng(0).integers(0, 16, (50, 8, 8, 3), np.uint8)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


def claimed(path, shape):
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    zipped(path, [("arr_0.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)])


def encrypted(path):
    np.savez(path, IMAGES)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def unknown_compression(path):
    np.savez(path, IMAGES)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 97
    path.write_bytes(content)


BROKEN = {
    "a single array renamed": (
        lambda p: p.write_bytes(npy(IMAGES)),
        r"is not an npz of arrays: it is a single array \(npy\); save it",
    ),
    "pickled": (lambda p: p.write_bytes(b"\x80\x04."), "is not an npz of arrays: it is pickled, and pickles are not loaded"),
    "empty": (
        lambda p: p.write_bytes(b""),
        r"is not an npz, or is damaged \(File is not a zip file\); make or download it again",
    ),
    "encrypted": (encrypted, "is damaged .*is encrypted"),
    "unknown compression": (unknown_compression, "is damaged .*compression method is not supported"),
    "one name twice": (lambda p: zipped(p, [("arr_0.npy", npy(IMAGES))] * 2), "holds two arrays of the same name"),
    "a claim of too much": (lambda p: claimed(p, (10**12, 512, 512, 3)), "arr_0 has another length than its header says"),
    "a claim that overflows": (lambda p: claimed(p, (2**62, 2**62, 2, 3)), "arr_0 has another length than its header says"),
    "a negative claim": (lambda p: claimed(p, (-1, 8, 8, 3)), r"arr_0 has the impossible shape \(-1, 8, 8, 3\)"),
    "a folder": (lambda p: p.mkdir(), None),
    "structured": (
        lambda p: np.savez(p, np.zeros(4, [("a", "u1")])),
        r"arr_0 of .* is \[\('a', 'u1'\)\] of shape \(4,\); expected",
    ),
    "a number": (lambda p: np.savez(p, np.uint8(3)), r"arr_0 of .*has shape \(\); expected \(N, H, W, C\)"),
    "no pixels": (lambda p: np.savez(p, np.zeros((4, 0, 8, 3), np.uint8)), "holds no images"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("opened", [NpzImages, open_batch])
def test_each_fault_is_one_sentence_with_the_path(tmp_path, case, opened):
    make, message = BROKEN[case]
    make(tmp_path / "x.npz")
    if message is None:
        message = "cannot be read .Is a directory" if opened is NpzImages else "holds no images"
    with pytest.raises((ValueError, OSError), match=message) as caught:
        opened(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_in_a_folder_of_the_zip_do_not_count(tmp_path):
    zipped(tmp_path / "x.npz", [("inner/arr_0.npy", npy(IMAGES))])
    with pytest.raises(ValueError, match=r"has no arr_0, the uint8 images; it holds: inner/arr_0"):
        NpzImages(tmp_path / "x.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*x\.npz"):
        NpzImages(tmp_path / "x.npz")


def test_big_endian_levels_are_read(tmp_path):
    deep = IMAGES.astype(np.uint16) * 4369
    np.savez(tmp_path / "x.npz", deep.astype(">u2"))
    found = NpzImages(tmp_path / "x.npz").read(0, 50)
    assert found.dtype == np.dtype("=u2")
    assert np.array_equal(found, deep)


def test_a_flipped_byte_is_found_before_the_first_image_is_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, IMAGES)
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    for read in (lambda s: s.read(0, 1), lambda s: s.take(np.array([40, 3]))):
        with pytest.raises(ValueError, match=r"x\.npz is not an npz, or is damaged \(Bad CRC-32"):
            read(NpzImages(path))


@pytest.fixture
def inflated(monkeypatch):
    """How many bytes came out of zip archives."""
    counts = [0]
    read = zipfile.ZipExtFile._read1

    def counted(self, n):
        data = read(self, n)
        counts[0] += len(data)
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", counted)
    return counts


@pytest.mark.parametrize("dtype", ["u1", ">u2"])
def test_random_rows_of_a_compressed_file_inflate_it_once(tmp_path, inflated, dtype):
    np.savez_compressed(tmp_path / "x.npz", IMAGES.astype(dtype))
    source, rng = NpzImages(tmp_path / "x.npz"), np.random.default_rng(1)
    for _ in range(40):
        rows = rng.integers(0, 50, 16)
        assert np.array_equal(source.take(rows), IMAGES[rows])
    assert np.array_equal(source.read(3, 9), IMAGES[3:9])
    assert inflated[0] < 4 * IMAGES.astype(dtype).nbytes  # the checksum, the first rows, and unpacking; before: 600 times
    assert source.take(np.array([], np.int64)).shape == (0, 8, 8, 3)
    source.take(np.array([2, 1]))[0, 0, 0, 0] = 1  # it can be written, as PyTorch wants


def test_rows_in_order_need_no_room_on_the_disk(tmp_path, inflated, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", IMAGES)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: pytest.fail("unpacked"))
    source = NpzImages(tmp_path / "x.npz")
    for start in range(0, 50, 10):
        rows = np.array([start + 7, start, start + 3])
        assert np.array_equal(source.take(rows), IMAGES[rows])
    assert inflated[0] < 3 * IMAGES.nbytes


def test_no_room_to_unpack_is_said(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    np.savez_compressed(tmp_path / "x.npz", IMAGES)
    source = NpzImages(tmp_path / "x.npz")
    source.read(40, 50)
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(
        OSError, match=r"arr_0 of .*x\.npz cannot be unpacked into .* \(No space left on device\); save it with np\.savez"
    ):
        source.take(np.array([3]))


def test_unpacking_of_a_large_file_is_announced(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", IMAGES)
    monkeypatch.setattr("sag.data.npz_images.LARGE", 100)
    source = NpzImages(tmp_path / "x.npz")
    source.read(40, 50)
    with pytest.warns(UserWarning, match=r"x\.npz is compressed: unpacking 0 MB into"):
        source.take(np.array([3]))


def test_a_member_that_damage_hides_is_missed(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, IMAGES, np.arange(50))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 32] = 64  # a longer comment of arr_0 swallows the entry of arr_1
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["arr_0.npy"]
    with pytest.raises(ValueError, match=r"x\.npz is not an npz, or is damaged \(its list of arrays is incomplete\)"):
        NpzImages(path)
