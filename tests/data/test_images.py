"""Images read a few at a time: npz files of any layout, folders, ADM's crop, and what is wrong with a file."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from sag.data import ArrayImages, FolderImages, NpzImages, SelectedImages, open_images


def images(n=7, height=5, width=4):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_rows_of_an_npz(tmp_path, save, dtype):
    expected = (images() * dtype(np.iinfo(dtype).max // 255)).astype(dtype)
    save(tmp_path / "x.npz", arr_1=np.arange(7), arr_0=expected)
    source = open_images(tmp_path / "x.npz")
    assert (source.shape, len(source)) == ((7, 5, 4, 3), 7)
    for start, stop in [(0, 3), (3, 7), (6, 9), (1, 2), (2, 2)]:
        assert source.read(start, stop).dtype == dtype
        assert np.array_equal(source.read(start, stop), expected[start:stop])
    source.verify()
    assert source.labels().tolist() == list(range(7))


def test_the_sources_agree(tmp_path):
    for i, image in enumerate(images()):
        (tmp_path / "folder" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / str(i % 2) / f"{i}.png")
    np.savez(tmp_path / "x.npz", images())
    order = [0, 2, 4, 6, 1, 3, 5]  # by path
    folder = open_images(tmp_path / "folder")
    assert np.array_equal(folder.read(0, 7), images()[order])
    array, npz = ArrayImages(images()), open_images(tmp_path / "x.npz")
    assert np.array_equal(array.read(2, 5), npz.read(2, 5))
    rows = np.array([1, 4, 6])
    chosen = SelectedImages(npz, rows)
    assert chosen.shape == (3, 5, 4, 3)
    assert np.array_equal(chosen.read(1, 3), images()[[4, 6]])
    assert len({source.fingerprint for source in (array, npz, folder, chosen)}) == 4


def test_the_fingerprint_follows_the_content(tmp_path):
    np.savez(tmp_path / "a.npz", images())
    np.savez(tmp_path / "b.npz", images())
    changed = images()
    changed[3, 2, 1, 0] ^= 1
    np.savez(tmp_path / "c.npz", changed)
    a, b, c = (NpzImages(tmp_path / f"{name}.npz").fingerprint for name in "abc")
    assert a == b != c


def test_grey_files_count_as_rgb(tmp_path):
    grey = images()[0, :, :, 0]
    Image.fromarray(grey).save(tmp_path / "0.png")
    assert np.array_equal(open_images(tmp_path).read(0, 1)[0], np.repeat(grey[..., None], 3, 2))


def test_a_flipped_byte_is_found(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images())
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npz is not an npz, or is damaged \(Bad CRC-32.*make or download it again"):
        NpzImages(path).verify()


def save_raw(path, name, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


BROKEN = {
    "arr_0 of .* is float32 .*expected uint8 or uint16 images .*trunc": lambda p: np.savez(p, images().astype(np.float32)),
    "arr_0 of .* is int64 .*expected uint8": lambda p: np.savez(p, images().astype(np.int64)),
    r"looks like \(N, C, H, W\): save images.transpose": lambda p: np.savez(p, np.zeros((2, 3, 8, 8), np.uint8)),
    r"has shape \(2, 8, 8\); expected \(N, H, W, C\)$": lambda p: np.savez(p, np.zeros((2, 8, 8), np.uint8)),
    "holds no images": lambda p: np.savez(p, images()[:0]),
    "Fortran order": lambda p: np.savez(p, np.asfortranarray(images())),
    "pickled Python objects, which are not loaded": lambda p: np.savez(p, np.array([{}, 1], dtype=object)),
    "has no arr_0, the uint8 images; it holds: images, mu": lambda p: np.savez(p, images=images(), mu=np.zeros(3)),
    "is not an npz, or is damaged": lambda p: p.write_bytes(b"no zip at all"),
    "no readable header": lambda p: save_raw(p, "arr_0.npy", b"nothing of NumPy's"),
    "another length than its header says": lambda p: save_raw(p, "arr_0.npy", _saved()[:-5]),
}


def _saved():
    import io

    buffer = io.BytesIO()
    np.save(buffer, images())
    return buffer.getvalue()


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_wrong_with_an_npz_is_said(tmp_path, message):
    BROKEN[message](tmp_path / "x.npz")
    with pytest.raises(ValueError, match=message):
        NpzImages(tmp_path / "x.npz")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, images(1000))
    path.write_bytes(path.read_bytes()[:30000])
    with pytest.raises(ValueError, match="is not an npz, or is damaged"):
        NpzImages(path)


def test_a_compressed_file_with_a_flipped_byte_is_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images(100))
    data = bytearray(path.read_bytes())
    data[3000] ^= 255
    path.write_bytes(data)
    source = NpzImages(path)
    with pytest.raises(ValueError, match="is damaged"):
        source.read(0, 100)


def picture(path, mode="RGB", size=(4, 5)):
    Image.new(mode, size).save(path)


WRONG = {
    r"holds no images; expected \.png files": lambda folder: None,
    r"b\.jpg is not a PNG: lossy or converted": lambda folder: (picture(folder / "a.png"), picture(folder / "b.jpg")),
    r"b\.png is 9x8, but a\.png is 5x4": lambda folder: (picture(folder / "a.png"), picture(folder / "b.png", size=(8, 9))),
    "has mode RGBA; expected 8-bit grey or RGB": lambda folder: picture(folder / "a.png", "RGBA"),
    "has mode I;16, more than 8 bits; .* for other files set value_range=": lambda folder: picture(folder / "a.png", "I;16"),
    r"a\.png is not a readable image": lambda folder: (folder / "a.png").write_bytes(b"no picture"),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, message):
    WRONG[message](tmp_path)
    with pytest.raises(ValueError, match=message):
        FolderImages(tmp_path).read(0, 10)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        FolderImages(tmp_path / "nowhere")
