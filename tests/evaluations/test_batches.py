"""Reference and sample files: what they may hold, what is refused, and references written by this project."""

import pickle

import numpy as np
import pytest
from helpers import random_images
from PIL import Image

from evaluations.batches import open_batch, write_reference
from evaluations.frechet import Statistics
from sag.data import ArrayImages

IMAGES = random_images(0, 6)
STATISTICS = {"mu": np.zeros(4), "sigma": np.eye(4)}
SPATIAL = {"mu_s": np.ones(3), "sigma_s": 2 * np.eye(3)}


def saved(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)
    return open_batch(folder / "x.npz")


def test_adm_reference(tmp_path):
    batch = saved(tmp_path, arr_0=IMAGES, **STATISTICS, **SPATIAL)
    assert np.array_equal(batch.images.read(0, 6), IMAGES)
    assert batch.spatial.covariance[0, 0] == 2
    assert batch.count is None  # statistics of an unknown number of images
    assert "6 images of 8x8, statistics of pool and spatial features" in batch.describe()


def test_statistics_only_as_edm_and_pytorch_fid_store_them(tmp_path):
    batch = saved(tmp_path, mu=np.zeros(4, np.float32), sigma=np.eye(4, dtype=np.float32))
    assert (batch.images, batch.spatial, batch.count) == (None, None, None)
    assert batch.pool.mean.dtype == np.float64


def test_samples_and_folders(tmp_path):
    batch = saved(tmp_path, arr_0=IMAGES, arr_1=np.arange(6))
    assert (batch.count, batch.pool, batch.extractor) == (6, None, None)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i}.png")
    folder = open_batch(tmp_path / "folder")
    assert np.array_equal(folder.images.read(0, 6), IMAGES)


def test_the_fingerprint_follows_statistics_too(tmp_path):
    a = saved(tmp_path, arr_0=IMAGES, **STATISTICS).fingerprint
    b = saved(tmp_path, arr_0=IMAGES, **STATISTICS, **SPATIAL).fingerprint
    c = saved(tmp_path, arr_0=IMAGES, mu=np.zeros(4), sigma=2 * np.eye(4)).fingerprint
    assert len({a, b, c}) == 3


def test_a_written_reference_is_read_back_and_repeats_to_the_byte(tmp_path):
    grey = ArrayImages(IMAGES[..., :1])
    pool, spatial = Statistics(np.zeros(4), np.eye(4), 6), Statistics(np.ones(3), np.eye(3), 6)
    for name in ("a.npz", "b.npz"):
        write_reference(tmp_path / name, grey, np.array([1, 4]), pool, spatial, "some-extractor")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["arr_0", "mu", "sigma", "mu_s", "sigma_s", "num_images", "extractor"]
        assert np.array_equal(arrays["arr_0"], np.repeat(IMAGES[[1, 4], :, :, :1], 3, 3))
    batch = open_batch(tmp_path / "a.npz")
    assert (batch.count, batch.extractor, len(batch.images)) == (6, "some-extractor", 2)
    batch.images.verify()
    write_reference(tmp_path / "c.npz", grey, np.array([0]), pool, None, "x")
    assert open_batch(tmp_path / "c.npz").spatial is None


def test_a_compact_reference_is_smaller_and_has_the_same_images_and_labels(tmp_path):
    grey = ArrayImages(np.repeat(IMAGES[..., :1], 40, 1), np.arange(len(IMAGES)))
    pool = Statistics(np.zeros(4), np.eye(4), 6)
    for name in ("plain", "compact"):
        write_reference(tmp_path / f"{name}.npz", grey, np.array([1, 4]), pool, None, "x", compact=name == "compact")
    plain, compact = (open_batch(tmp_path / f"{name}.npz") for name in ("plain", "compact"))
    assert compact.path.stat().st_size < plain.path.stat().st_size / 2
    assert (plain.images.shape[3], compact.images.shape[3]) == (3, 1)
    assert np.array_equal(plain.images.read(0, 2)[..., :1], compact.images.read(0, 2))
    assert compact.images.labels().tolist() == plain.images.labels().tolist() == [1, 4]
    assert np.array_equal(plain.pool.covariance, compact.pool.covariance)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, r"holds images; expected uint8 images in arr_0, or mu and sigma"),
        ({"mu": np.zeros(4)}, r"has no sigma; statistics are mu and sigma together"),
        ({**STATISTICS, "sigma_s": np.eye(3)}, r"has no mu_s"),
        ({"mu": np.zeros(4), "sigma": np.eye(5)}, r"mu is float64 \(4,\) and sigma float64 \(5, 5\); expected \(D,\) and"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.nan)}, r"holds values that are not finite"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, r"pickled objects, which are not loaded"),
        ({"arr_0": IMAGES.astype(np.float32) / 255}, r"arr_0 of .* is float32"),
        ({"arr_0": IMAGES, "arr_1": np.eye(6)}, r"arr_1 of .*x\.npz is float64 of shape \(6, 6\); expected labels"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"x\.npz: mu is float64 \(0,\)"),
        ({**STATISTICS, "num_images": np.zeros(2)}, r"x\.npz: num_images is float64 \(2,\); expected one whole number"),
        (
            {**STATISTICS, "num_images": np.array(-3)},
            r"x\.npz: num_images is int64 \(\); expected one whole number, at",
        ),
        ({**STATISTICS, "num_images": np.array(np.nan)}, r"x\.npz: num_images is float64"),
        ({**STATISTICS, "num_images": np.array("many")}, r"x\.npz: num_images is <U4"),
        ({**STATISTICS, "extractor": np.array(["a", "b"])}, r"x\.npz: extractor is <U1 \(2,\); expected one text"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        saved(tmp_path, **arrays)


def test_arrays_that_nobody_asked_for_are_not_read(tmp_path):
    fingerprint = saved(tmp_path, arr_0=IMAGES, **STATISTICS).fingerprint
    found = saved(tmp_path, **STATISTICS, features=np.array([{}]))
    assert (found.count, found.images, fingerprint != found.fingerprint) == (None, None, True)


def test_what_is_no_npz_is_named(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=r"no file or folder at .*x\.npz"):
        open_batch(path)
    path.write_bytes(pickle.dumps({"mu": 1}))
    with pytest.raises(ValueError, match=r"x\.npz is not an npz of arrays: it is pickled"):
        open_batch(path)
    np.save(path.with_suffix(".npy"), IMAGES)
    with pytest.raises(ValueError, match="not an npz of arrays: it is a single array"):
        open_batch(path.with_suffix(".npy"))
    np.savez(path, arr_0=IMAGES)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"x\.npz is not an npz, or is damaged "):
        open_batch(path)
