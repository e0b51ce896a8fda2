"""Whole scores: definition of each value, several processes, what files can serve, warnings, and memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import TinyNetwork, random_images
from PIL import Image

from evaluations import extraction
from evaluations.batches import open_batch
from evaluations.extraction import FeatureFiles, extract
from evaluations.extractors import Features, ModuleExtractor
from evaluations.frechet import Statistics, frechet_distance
from evaluations.metrics import DEFAULT, choose, size_name
from evaluations.metrics.inception_score import InceptionScore
from evaluations.metrics.kid import kernel_distance
from evaluations.neighbours import density_coverage, precision_recall
from evaluations.scoring import score, table
from sag.data import ArrayImages
from sag.distributed import Process


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(extraction, "SHARD", 50)


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=random_images(0, 230))
    np.savez(tmp_path / "reference.npz", arr_0=random_images(1, 330))
    return open_batch(tmp_path / "samples.npz"), open_batch(tmp_path / "reference.npz")


def scored(samples, reference, tmp_path, metrics=None, name="work", **options):
    extractor = options.pop("extractor", None) or ModuleExtractor("tiny", TinyNetwork())
    metrics = metrics or choose(settings={"kid_subsets": 5})
    folders = {"work": tmp_path / name, "cache": tmp_path / f"{name}-cache"}
    return score(samples, reference, extractor, metrics, **folders, **options)


def test_every_value_is_its_metric_on_the_features(files, tmp_path):
    found = scored(*files, tmp_path)
    extractor = ModuleExtractor("tiny", TinyNetwork())
    x, y = (extractor(torch.from_numpy(batch.images.read(0, 999)).permute(0, 3, 1, 2)) for batch in files)

    def statistics(v):
        return Statistics(v.double().mean(0).numpy(), np.cov(v.double().numpy(), rowvar=False))

    inception_score = InceptionScore(230)
    inception_score.update(0, x.logits.numpy())
    names = ("precision", "recall", "density", "coverage", "kid", "kid_std")
    pairs = (
        precision_recall(x.pool, y.pool),
        density_coverage(x.pool, y.pool),
        kernel_distance(x.pool.numpy(), y.pool.numpy(), 5),
    )
    expected = {
        "fid": frechet_distance(statistics(x.pool), statistics(y.pool)),
        "sfid": frechet_distance(statistics(x.spatial), statistics(y.spatial)),
        "is": inception_score.score(),
        **dict(zip(names, [value for pair in pairs for value in pair], strict=True)),
    }
    assert found.values == pytest.approx(expected, rel=1e-9)
    assert found.unavailable == {"agreement": "the extractor does not classify by the labels of samples"}
    assert [name for name, _ in table(found)] == [f"{name}_230" for name in (*DEFAULT[:-1], "kid_std")]


def test_agreement_is_the_share_of_labels_that_the_extractor_finds(files, tmp_path):
    extractor = ModuleExtractor("tiny", TinyNetwork())
    extractor.classes = 10
    metrics = choose(["agreement"])
    images = random_images(0, 230)
    labels = extractor(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.argmax(1).numpy()
    labels[::4] = (labels[::4] + 1) % 10
    np.savez(tmp_path / "labelled.npz", arr_0=images, arr_1=labels)
    labelled = open_batch(tmp_path / "labelled.npz")
    found = scored(labelled, files[1], tmp_path, metrics, extractor=extractor)
    assert found.values == {"agreement": 172 / 230}
    np.savez(tmp_path / "null.npz", arr_0=images, arr_1=np.full(230, 10))
    for batch, reason in (
        (open_batch(tmp_path / "null.npz"), r"labels outside \[0, 10\)"),
        (files[0], r"holds no labels \(arr_1\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            scored(batch, files[1], tmp_path, metrics, extractor=extractor)


@pytest.mark.parametrize("shape", [(230, 1), (230,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_agreement_stays_in_its_range_whatever_the_labels_are_stored_as(files, tmp_path, shape, dtype):
    extractor = ModuleExtractor("tiny", TinyNetwork())
    extractor.classes = 10
    np.savez(tmp_path / "labelled.npz", arr_0=random_images(0, 230), arr_1=np.full(shape, 8, dtype))
    np.savez(tmp_path / "plain.npz", arr_0=random_images(0, 230), arr_1=np.full(230, 8))
    metrics = choose(["agreement"])
    found, expected = (
        scored(open_batch(tmp_path / f"{name}.npz"), files[1], tmp_path, metrics, name=name, extractor=extractor).values
        for name in ("labelled", "plain")
    )
    assert found == expected
    assert 0 <= found["agreement"] <= 1


def test_images_replaced_with_a_kept_time_give_their_own_scores(files, tmp_path):
    for name, seed in (("data", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(random_images(seed, 60)):
            Image.fromarray(image).save(tmp_path / name / f"{i:02d}.png", compress_level=0)
    first = scored(files[0], open_batch(tmp_path / "data"), tmp_path).values
    for path in (tmp_path / "data").iterdir():
        stat = path.stat()
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
    second = scored(files[0], open_batch(tmp_path / "data"), tmp_path).values
    assert second == scored(files[0], open_batch(tmp_path / "other"), tmp_path, name="fresh").values
    assert second["fid"] != first["fid"]


def test_any_number_of_processes_gives_the_same_numbers(files, tmp_path):
    expected = scored(*files, tmp_path).values
    for world in (2, 3):
        name = f"work{world}"
        for rank in reversed(range(1, world)):
            assert scored(*files, tmp_path, name=name, process=Process(rank, world)) is None
        assert scored(*files, tmp_path, name=name, process=Process(0, world)).values == expected
    # others that never came
    assert scored(*files, tmp_path, name="alone", process=Process(0, 9)).values == expected


def test_the_batch_size_does_not_matter(files, tmp_path):
    a, b = (scored(*files, tmp_path, name=f"work{size}", batch_size=size).values for size in (1, 32))
    assert a == pytest.approx(b, rel=1e-5)


def test_a_stopped_extraction_continues(files, tmp_path, monkeypatch):
    expected = scored(*files, tmp_path).values
    write, written = extraction._write, []

    def dies(path, parts):
        if len(written) == 3:
            raise OSError("no space left on device")
        written.append(path)
        write(path, parts)

    monkeypatch.setattr(extraction, "_write", dies)
    with pytest.raises(OSError, match="no space"):
        scored(*files, tmp_path, name="again")
    kept = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(extraction, "_write", write)
    assert scored(*files, tmp_path, name="again").values == expected
    reference = [path for path in kept if "cache" in str(path)]
    assert len(reference) == 3
    assert all(path.stat().st_mtime_ns == kept[path] for path in reference)


def test_features_of_the_reference_are_extracted_once(files, tmp_path, monkeypatch):
    first = scored(*files, tmp_path)
    seen = []
    monkeypatch.setattr(extraction, "_check_finite", lambda found, start, title: seen.append(title))
    second = scored(*files, tmp_path)
    assert second.values == first.values
    assert seen == []  # those of the samples are there too, as nobody removed them
    scored(*files, tmp_path, extractor=ModuleExtractor("tiny", TinyNetwork(2.0)))
    assert set(seen) == {"samples", "reference"}


def test_a_late_process_finds_its_work_done_and_cleared(tmp_path, monkeypatch):
    source = ArrayImages(random_images(0, 120))
    write = extraction._write

    def too_late(path, parts):
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        write(path, parts)

    monkeypatch.setattr(extraction, "_write", too_late)
    extract(source, ModuleExtractor("tiny", TinyNetwork()), tmp_path / "f", Process(1, 2), 32, "samples")
    assert not (tmp_path / "f").exists()


def test_statistics_in_the_files_are_used_and_images_where_they_are_needed(files, tmp_path):
    samples, reference = files
    full = scored(samples, reference, tmp_path).values
    extractor = ModuleExtractor("tiny", TinyNetwork())
    x = extractor(torch.from_numpy(reference.images.read(0, 999)).permute(0, 3, 1, 2))
    moments = {}
    for letter, v in (("", x.pool), ("_s", x.spatial)):
        moments |= {f"mu{letter}": v.double().mean(0).numpy(), f"sigma{letter}": np.cov(v.double().numpy(), rowvar=False)}
    np.savez(tmp_path / "all.npz", **moments, extractor=extractor.id)
    found = scored(samples, open_batch(tmp_path / "all.npz"), tmp_path, name="all")
    assert found.values == pytest.approx({name: full[name] for name in ("fid", "sfid", "is")}, rel=1e-9)
    reasons = dict.fromkeys(("precision", "recall", "kid", "density", "coverage"), "holds statistics only, no images")
    assert found.unavailable.pop("agreement").startswith("the extractor does not classify")
    assert set(found.unavailable) == set(reasons)
    assert all(reasons[name] in reason for name, reason in found.unavailable.items())
    np.savez(tmp_path / "pool.npz", mu=moments["mu"], sigma=moments["sigma"])
    found = scored(samples, open_batch(tmp_path / "pool.npz"), tmp_path, name="pool")
    assert set(found.values) == {"fid", "is"}
    assert "holds no spatial statistics" in found.unavailable["sfid"]
    # statistics on both sides need no images at all
    both = scored(open_batch(tmp_path / "all.npz"), open_batch(tmp_path / "pool.npz"), tmp_path, name="both")
    assert both.values == pytest.approx({"fid": 0}, abs=1e-9)


class PoolOnly(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_what_an_extractor_does_not_give_is_said(files, tmp_path):
    found = scored(*files, tmp_path, extractor=ModuleExtractor("pool", PoolOnly()))
    assert found.unavailable == {
        "sfid": "the extractor gives no spatial features",
        "is": "the extractor gives no logits",
        "agreement": "the extractor does not classify by the labels of samples",
    }
    assert set(found.values) == {"fid", "precision", "recall", "kid", "kid_std", "density", "coverage"}


def test_only_what_is_asked_for_is_measured(files, tmp_path):
    assert set(scored(*files, tmp_path, choose(["is", "recall"])).values) == {"is", "recall"}


def test_pairs_that_cannot_be_compared(files, tmp_path):
    samples, reference = files
    np.savez(tmp_path / "large.npz", arr_0=random_images(1, 10, size=16))
    with pytest.raises(ValueError, match=r"samples\.npz has images of 8x8, .*large\.npz of 16x16; scores need images of one"):
        scored(samples, open_batch(tmp_path / "large.npz"), tmp_path)
    np.savez(tmp_path / "other.npz", mu=np.zeros(48), sigma=np.eye(48), extractor="inception-x")
    with pytest.raises(ValueError, match=r"other\.npz were made with inception-x, but the extractor is tiny-\w{8}; choose"):
        scored(samples, open_batch(tmp_path / "other.npz"), tmp_path)
    np.savez(tmp_path / "dims.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ValueError, match=r"dims\.npz have 64 dimensions, but tiny-\w+ gives 48: they were made with another"):
        scored(samples, open_batch(tmp_path / "dims.npz"), tmp_path)
    np.savez(tmp_path / "few.npz", arr_0=random_images(1, 3))
    found = scored(open_batch(tmp_path / "few.npz"), reference, tmp_path, name="few")
    assert "holds 3 images; 4 are needed" in found.unavailable["precision"]
    assert "holds 3 images; 6 are needed" in found.unavailable["coverage"]
    np.savez(tmp_path / "mu.npz", mu=np.zeros(48), sigma=np.eye(48))
    with pytest.raises(
        ValueError, match=r"none of the metrics can be measured on these files: kid: .*mu\.npz holds statistics"
    ):
        scored(samples, open_batch(tmp_path / "mu.npz"), tmp_path, choose(["kid"]))


class Broken(torch.nn.Module):
    def forward(self, x):
        found = x.mean((2, 3))
        found[x.mean((1, 2, 3)) > 0.55] = float("nan")
        return found


def test_features_that_are_not_finite_name_the_image(files, tmp_path):
    first = int(np.flatnonzero(files[1].images.read(0, 999).mean((1, 2, 3)) / 255 > 0.55)[0])
    with pytest.raises(ValueError, match=rf"not finite for image {first} of the reference"):
        scored(*files, tmp_path, extractor=ModuleExtractor("broken", Broken()))


@pytest.mark.parametrize("part", ["spatial", "logits"])
def test_no_part_of_the_features_may_be_infinite(files, tmp_path, part):
    class Infinite(TinyNetwork):
        def forward(self, x):
            return {**super().forward(x), part: torch.full((len(x), 4), torch.inf)}

    with pytest.raises(ValueError, match="not finite for image 0 of the reference"):
        scored(*files, tmp_path, extractor=ModuleExtractor("infinite", Infinite()))


def test_damaged_samples_are_found_before_the_work(files, tmp_path):
    path = tmp_path / "samples.npz"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"samples\.npz is not an npz, or is damaged \(Bad CRC-32"):
        scored(open_batch(path), files[1], tmp_path)


def test_few_images_are_warned_of(files, tmp_path):
    found = scored(*files, tmp_path)
    assert sum("there are only" in warning for warning in found.warnings) == 2


class Certain(torch.nn.Module):
    def forward(self, x):
        pool = x.mean((2, 3))
        return {"pool": pool, "logits": 1000 * torch.nn.functional.one_hot((pool[:, 0] * 10).long().clamp_max(9), 10)}


def test_sorted_samples_are_warned_of(tmp_path, files, monkeypatch):
    monkeypatch.setattr("evaluations.metrics.inception_score.CHUNK", 50)
    rows = random_images(0, 230)
    order = np.argsort(rows[..., 0].mean((1, 2)))
    np.savez(tmp_path / "sorted.npz", arr_0=rows[order])
    metrics, extractor = choose(["is"]), ModuleExtractor("certain", Certain())
    mixed = scored(files[0], files[1], tmp_path, metrics, extractor=extractor)
    assert not any("sorted" in warning for warning in mixed.warnings)
    found = scored(open_batch(tmp_path / "sorted.npz"), files[1], tmp_path, metrics, extractor=extractor)
    assert any("look sorted by class: IS is" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ("fid", "fjd")}, "unknown metric 'fjd'; expected any of fid, sfid, is"),
        ({"metrics": ()}, "metrics is empty; expected any of fid, sfid, is"),
        ({"metrics": "fid"}, "metrics must be a list of names, got 'fid'; expected any of fid"),
        ({"metrics": ["fid", 3]}, "unknown metric 3; expected any of fid"),
        ({"neighbors": 3}, "unknown setting 'neighbors' of the metrics; expected any of is_splits, is_shuffle, neighbours"),
        ({"neighbours": "three"}, "neighbours must be a whole number, got 'three'"),
        ({"kid_subsets": True}, "kid_subsets must be a whole number, got True"),
        ({"is_shuffle": 1}, "is_shuffle must be true or false, got 1"),
        ({"distance_dtype": "bfloat16"}, "distance_dtype must be float32 or float16"),
        ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
        ({"kid_subset_size": 1}, "kid_subset_size must be at least 2, got 1"),
        ({"is_splits": 0}, "is_splits must be at least 1 or null"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(ValueError, match=message):
        choose(change.pop("metrics", DEFAULT), change)


def test_statistics_and_images_of_different_numbers_have_their_own_n(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=random_images(0, 300), mu=np.zeros(48), sigma=np.eye(48), num_images=60000)
    batch = open_batch(tmp_path / "x.npz")
    found = scored(batch, batch, tmp_path, choose(["fid", "is", "recall"]))
    assert [name for name, _ in table(found)] == ["fid_60k", "is_300", "recall_300"]


def test_splits_need_images(files, tmp_path):
    found = scored(*files, tmp_path, choose(["fid", "is"], {"is_splits": 231}))
    assert found.unavailable["is"].endswith("holds 230 images; 231 are needed")


def test_names_carry_n():
    assert [size_name(n) for n in (10000, 50000, 1000, 1234, 64, None)] == ["_10k", "_50k", "_1k", "_1234", "_64", ""]


def test_feature_files_come_in_the_order_of_the_images(tmp_path):
    source = ArrayImages(random_images(0, 130))
    files = extract(source, ModuleExtractor("tiny", TinyNetwork()), tmp_path, Process(), 7, "data")
    assert [start for start, _ in files] == [0, 50, 100]
    pool = np.concatenate([arrays["pool"] for _, arrays in FeatureFiles(tmp_path, 130)])
    expected = Features(*ModuleExtractor("tiny", TinyNetwork())(torch.from_numpy(source.images).permute(0, 3, 1, 2)))
    assert np.allclose(pool, expected.pool, atol=1e-6)


PEAK = """
import sys, pathlib, numpy as np, torch
from evaluations.batches import open_batch
from evaluations.extractors import ModuleExtractor
from evaluations.metrics import choose
from evaluations.scoring import score
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2048))
status, folder = pathlib.Path("/proc/self/status"), pathlib.Path(sys.argv[1])
batch = open_batch(sys.argv[2])
for _ in range(2):  # the first run warms up
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    score(batch, batch, ModuleExtractor("x", network), choose(["fid"]), work=folder / "w", cache=folder / "c")
print(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    peaks = []
    for count in (1000, 8000):
        np.savez(tmp_path / f"{count}.npz", arr_0=np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
        command = [sys.executable, "-c", PEAK, str(tmp_path / str(count)), str(tmp_path / f"{count}.npz")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 30  # MiB; the features of 7000 images would be 55 more on each side
