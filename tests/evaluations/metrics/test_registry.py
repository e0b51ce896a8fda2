"""Metrics are found by being there: one new file is a metric with its name, its settings and its place in tables."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from helpers import ROOT, TinyNetwork, random_images

from evaluations import metrics
from evaluations.batches import open_batch
from evaluations.extractors import ModuleExtractor
from evaluations.metric import Metric, Rows, Unavailable
from evaluations.metrics import COLUMNS, DEFAULT, METRICS, NAMES, SETTINGS, __main__, choose
from evaluations.scoring import score, table

BRIGHTNESS = '''
from dataclasses import dataclass
from typing import ClassVar

from evaluations.metric import Metric, Rows, check_count


@dataclass(frozen=True)
class Brightness(Metric):
    """The mean of the pool features, a number of times."""

    brightness_times: int = 2

    values: ClassVar = {"brightness": "brightness"}
    needs: ClassVar = frozenset({"pool"})
    reference = False
    place = 35
    summary = Rows("pool")

    def __post_init__(self):
        check_count("brightness_times", self.brightness_times)

    def measure(self, sides, device):
        return {"brightness": self.brightness_times * float(sides[0].double().mean())}
'''


def test_the_metrics_of_before_in_their_order():
    assert DEFAULT == ("fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage", "agreement")
    assert NAMES[: len(DEFAULT)] == DEFAULT
    assert dict(COLUMNS) == {
        "fid": "FID", "sfid": "sFID", "is": "IS", "precision": "precision", "recall": "recall", "agreement": "agreement",
    }  # fmt: skip
    defaults = {name: SETTINGS[name].default for name in SETTINGS}
    assert defaults.items() >= {
        "distance_dtype": "float32", "neighbours": 3, "density_neighbours": 5, "is_splits": None, "is_shuffle": False,
        "kid_subsets": 100, "kid_subset_size": 1000,
    }.items()  # fmt: skip


def test_a_new_file_is_found_with_its_place_and_settings(tmp_path, monkeypatch):
    (tmp_path / "brightness.py").write_text(BRIGHTNESS)
    (tmp_path / "_private.py").write_text("raise AssertionError('not a metric')")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    found = metrics._discover()
    monkeypatch.delitem(sys.modules, "evaluations.metrics.brightness")
    assert [kind.__name__ for kind in found if kind not in METRICS] == ["Brightness"]
    assert [kind.__name__ for kind in found][2:5] == ["IS", "Brightness", "PrecisionRecall"]
    assert found[3](3).brightness_times == 3


@pytest.mark.slow
def test_one_new_file_is_a_metric_of_the_program(tmp_path):
    for folder in ("evaluations", "scripts", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sag").symlink_to(ROOT / "sag")
    (tmp_path / "evaluations/metrics/brightness.py").write_text(BRIGHTNESS)
    np.savez(tmp_path / "samples.npz", arr_0=np.full((9, 8, 8, 3), 51, np.uint8))
    command = [
        sys.executable, str(tmp_path / "scripts/evaluate.py"), "extractor=module", "device=cpu", "metrics=[brightness,is]",
        "extractor.network._target_=helpers.TinyNetwork", "brightness_times=5", f"samples={tmp_path / 'samples.npz'}",
        f"reference={tmp_path / 'samples.npz'}",
    ]  # fmt: skip
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("is", "brightness"))]
    assert [name for name, _ in lines] == ["is_9", "brightness_9"]  # places 30 and 35
    assert float(lines[1][1]) == pytest.approx(1)


@dataclass(frozen=True)
class Norm(Metric):
    """A metric that is not in the folder."""

    scale: float = 1.0

    values: ClassVar = {"norm": "norm"}
    needs: ClassVar = frozenset({"pool"})
    reference = False
    summary = Rows("pool")

    def measure(self, sides, device):
        if self.scale == 0:
            raise Unavailable("a scale of 0 measures nothing")
        return {"norm": self.scale * float(sides[0].norm(dim=1).mean()), "unasked": 1.0}

    def warnings(self, sides):
        return [f"the scale is {self.scale}"] * 2


@pytest.fixture
def batch(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=random_images(0, 30))
    return open_batch(tmp_path / "samples.npz")


def test_metrics_from_elsewhere_are_given_as_objects(batch, tmp_path):
    chosen = choose([Norm(2.0), "is"])
    assert list(chosen) == ["norm", "is"]
    found = score(batch, None, ModuleExtractor("t", TinyNetwork()), chosen, work=tmp_path / "w", cache=tmp_path / "c")
    assert [name for name, _ in table(found)] == ["is_30", "norm_30"]
    assert found.warnings == ["the scale is 2.0"]


def test_a_metric_without_a_value_leaves_the_others(batch, tmp_path):
    folders = {"work": tmp_path / "w", "cache": tmp_path / "c"}
    extractor = ModuleExtractor("t", TinyNetwork())
    found = score(batch, None, extractor, choose([Norm(0), "is", "fid"]), **folders)
    assert set(found.values) == {"is"}
    assert found.unavailable == {"norm": "a scale of 0 measures nothing", "fid": "it needs a reference"}
    with pytest.raises(ValueError, match="none of the metrics can be measured on these files: norm: a scale of 0"):
        score(batch, None, extractor, choose([Norm(0)]), **folders)


def test_names_and_settings_belong_to_one_metric():
    kind = METRICS[0]
    twin = type("Twin", (kind,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"evaluations\.metrics\.fid and elsewhere both have a value 'fid'"):
        metrics._check_names([kind, twin])


def test_equal_settings_share_one_summary():
    chosen = choose(["precision", "kid", "coverage"])
    assert len({metric.summary for metric in chosen.values()}) == 1


def test_every_metric_is_listed(capsys):
    __main__.main()
    printed = capsys.readouterr().out
    assert all(f"`{name}`" in printed for name in NAMES)
    assert all(f"`{name}=" in printed for name in SETTINGS)
    assert len({line.replace(r"\|", "").count("|") for line in printed.splitlines()}) == 1


def test_the_readme_names_metrics_and_settings_that_there_are():
    lines = (ROOT / "README.md").read_text().splitlines()
    for key, known in (("metrics", {*NAMES, "metrics"}), ("is_splits", {*SETTINGS})):
        (line,) = [line for line in lines if line.startswith(f"| `{key}`")]
        assert set(re.findall(r"`(\w+)`", line)) <= known
    assert all(f"`{name}`" in "".join(lines) for name in DEFAULT)


def test_listing_the_metrics_needs_no_torch():
    code = "import sys, evaluations.metrics; print({'torch', 'scipy', 'hydra'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == "set()"
