"""Reference batches: what they hold, how images are drawn, and that several processes make the same one."""

import numpy as np
import pytest
import torch
from helpers import TinyNetwork, random_images

from evaluations.batches import open_batch
from evaluations.extractors import ModuleExtractor
from evaluations.reference import make_reference
from sag.data import ArrayImages
from sag.distributed import Process

IMAGES = random_images(0, 40)


def make(out, **options):
    data = ArrayImages(IMAGES, np.arange(40) % 4)
    return make_reference(data, ModuleExtractor("tiny", TinyNetwork()), out, **{"device": "cpu", **options})


def test_statistics_are_of_all_images_and_some_are_kept(tmp_path, capsys):
    made = make(tmp_path / "reference.npz", num_images=15)
    assert capsys.readouterr() == ("", "")
    assert (made.count, made.kept, made.notes) == (40, 15, ())
    batch = open_batch(made.path)
    assert (batch.count, batch.images.shape, batch.extractor) == (40, (15, 8, 8, 3), made.extractor)
    features = ModuleExtractor("tiny", TinyNetwork())(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    for found, expected in ((batch.pool, features.pool), (batch.spatial, features.spatial)):
        np.testing.assert_allclose(found.mean, expected.double().mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.covariance, np.cov(expected.double(), rowvar=False), rtol=1e-4, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["reference.npz"]


def test_images_keep_their_order_and_labels_and_the_seed_decides_which(tmp_path):
    kept = {}
    for seed in (0, 1):
        made = make(tmp_path / f"{seed}.npz", limit=20, num_images=10, seed=seed)
        assert (made.count, made.kept) == (20, 10)
        with np.load(made.path) as arrays:
            rows = [int((image == IMAGES).all((1, 2, 3)).argmax()) for image in arrays["arr_0"]]
            assert rows == sorted(set(rows))
            assert arrays["arr_1"].tolist() == [row % 4 for row in rows]
        kept[seed] = rows
    assert kept[0] != kept[1]


def test_processes_share_the_work_and_the_main_one_returns_it(tmp_path):
    assert make(tmp_path / "shared.npz", process=Process(1, 2)) is None
    assert list(tmp_path.glob(".shared.features/*/*.npz"))
    assert make(tmp_path / "shared.npz", process=Process(0, 2)).count == 40
    make(tmp_path / "alone.npz")
    assert (tmp_path / "shared.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "reference"}, r"^out=reference must end in \.npz$"),
        ({"out": "there.npz"}, r"^there\.npz is there already; give another out, or remove it$"),
        ({"limit": 0}, "^limit must be at least 1, got 0$"),
        ({"limit": 41}, "^limit=41 images are asked for, but the data has 40$"),
        ({"num_images": "all"}, "^num_images must be a whole number, got 'all'$"),
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0$"),
        ({"seed": -1}, r"^seed must be in \[0, 2\*\*64\), got -1$"),
        ({"device": "tpu"}, "^unknown device 'tpu'"),
    ],
)
def test_bad_arguments_are_one_sentence_and_leave_no_file(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=message):
        make(**{"out": "new.npz", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
