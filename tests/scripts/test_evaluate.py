"""The evaluation scripts as a user runs them."""

import functools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, golden_images, random_images
from omegaconf import OmegaConf
from PIL import Image

from evaluations import score_files
from evaluations.inception import Inception
from scripts import evaluate


@pytest.fixture
def script(run_script):
    return functools.partial(run_script, evaluate.main, "evaluate", evaluate.EvaluateConfig)


@pytest.fixture
def batches(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=random_images(0, 600), arr_1=np.arange(600) % 10)
    np.savez(tmp_path / "reference.npz", arr_0=random_images(1, 700))
    return [*TINY, f"samples={tmp_path / 'samples.npz'}", f"reference={tmp_path / 'reference.npz'}"]


def scores(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_a_table_and_a_record_beside_the_samples(script, batches, tmp_path):
    printed = script(*batches)
    facts = scores(tmp_path)
    assert set(facts["metrics"]) == {
        f"{name}_600" for name in ("fid", "sfid", "is", "precision", "recall", "kid", "kid_std", "density", "coverage")
    }
    for name, value in facts["metrics"].items():
        assert re.search(rf"^{name} +{re.escape(format(value, '.7g'))}$", printed, re.M)
    assert facts["extractor"].startswith("module-")
    assert facts["identity"]["settings"]["distance_dtype"] == "float32"
    assert {"versions", "commit", "device", "processes", "seconds", "warnings"} <= set(facts)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == [
        "cache",
        "reference.npz",
        "samples.npz",
    ]


@pytest.mark.slow
def test_what_is_scored_is_not_scored_again_unless_something_changed(script, batches, tmp_path, monkeypatch):
    first = script(*batches)
    monkeypatch.setattr(score_files, "score", None)
    again = script(*batches, "batch_size=7")
    assert "scored already, see" in again
    assert again.splitlines()[:-1] == first.splitlines()[:-1]
    monkeypatch.undo()
    monkeypatch.setenv("SAG_CACHE", str(tmp_path / "cache"))
    script(*batches, "neighbours=4")
    np.savez(tmp_path / "samples.npz", arr_0=random_images(2, 600))
    assert "wrote" in script(*batches)
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_cache_for_the_reference_that_cannot_be_written_is_named(script, batches, monkeypatch, tmp_path):
    monkeypatch.setenv("SAG_CACHE", "/proc/nope")
    with pytest.raises(SystemExit, match=r"^error: the cache folder /proc/nope cannot be written .*; set SAG_CACHE"):
        script(*batches)
    monkeypatch.setenv("SAG_CACHE", str(tmp_path / "cache"))
    script(*batches)


def test_out_names_the_file_and_keeps_what_is_there(script, batches, tmp_path):
    out = tmp_path / "some/where/scores.json"
    script(*batches, f"out={out}")
    before = out.read_bytes()
    with pytest.raises(SystemExit, match="does not hold scores of these files with these settings"):
        script(*batches, f"out={out}", "neighbours=4")
    with pytest.raises(SystemExit, match="is a folder; give the name of a JSON file"):
        script(*batches, f"out={tmp_path}")
    assert out.read_bytes() == before


PUBLISHED = ["+published.source=paper", "+published.num_samples=600", "+published.any_n=false", "+published.values.fid=1.5"]


def test_published_numbers_are_put_beside_ours(script, batches, tmp_path):
    script(*batches)
    facts = scores(tmp_path)
    common = [*batches, *PUBLISHED, f"+published.extractor={facts['extractor']}"]
    printed = script(*common, "+published.tolerance=null")
    fid = facts["metrics"]["fid_600"]
    assert re.search(rf"^fid_600 +{fid:.7g} +1.5 +{re.escape(format(fid - 1.5, '+.4g'))}$", printed, re.M)
    assert "published: paper, 600 samples" in printed
    near = f"published.values.fid={fid + 1e-3}"
    assert "within 0.01" in script(*common, near, "+published.tolerance.fid=0.01")
    with pytest.raises(SystemExit, match="a score is outside the tolerance of the published one"):
        script(*common, near, "+published.tolerance.fid=0.0001")


def test_published_numbers_at_another_n_or_extractor_are_refused(script, batches, tmp_path):
    arguments = [*batches, *PUBLISHED, "+published.tolerance=null", "published.num_samples=50000"]
    with pytest.raises(SystemExit, match=r"paper used inception-y; the extractor here is module-\w{8}$"):
        script(*arguments, "+published.extractor=inception-y")
    script(*batches, f"out={tmp_path / 'a.json'}")
    own = f"+published.extractor={json.loads((tmp_path / 'a.json').read_text())['extractor']}"
    with pytest.raises(
        SystemExit, match=r"scores of 50000 samples, but .*samples\.npz holds 600: FID depends on their number; published"
    ):
        script(*arguments, own)
    assert "published: paper, 50000 samples" in script(*arguments, own, "published.any_n=true")


@pytest.mark.parametrize("name", [file.stem for file in (ROOT / "configs/published").glob("*.yaml")])
def test_acceptance_rows_are_complete(name):
    row = OmegaConf.load(ROOT / f"configs/published/{name}.yaml")
    assert row.num_samples == 50000
    assert row.extractor == "inception-2015-12-05-6726825d/tensorflow1-bilinear/nhwc"
    assert set(row["values"]) == set(row.tolerance) == {"fid", "sfid", "is", "precision", "recall"}


def test_folders_and_addresses(script, batches, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(random_images(0, 40)):
        Image.fromarray(image).save(tmp_path / f"folder/{i:03d}.png")
    monkeypatch.setattr(score_files, "fetch", lambda url: tmp_path / "reference.npz")
    printed = script(*TINY, f"samples={tmp_path / 'folder'}", "reference=https://example.org/reference.npz")
    assert "fid_40" in printed
    assert scores(tmp_path)["samples"].endswith("folder (40 images of 8x8)")


def test_the_folder_of_a_run_stands_for_its_samples(script, batches, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    arguments = [*batches[:-2], f"samples={tmp_path / 'run'}", batches[-1]]
    with pytest.raises(SystemExit, match="is a run that is not finished; the same scripts/sample"):
        script(*arguments)
    np.savez(tmp_path / "run/samples_40x8x8x3.npz", arr_0=random_images(0, 40))
    assert "fid_40" in script(*arguments)


def test_without_samples_the_newest_run_is_scored_against_the_reference_of_its_model(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="samples= is missing, and outputs/ has no finished run"):
        script()
    images, labels = golden_images()
    for i, name in enumerate(("older", "newer")):
        run = tmp_path / "outputs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("model:\n  reference: fashion_mnist\n")
        path = run / "samples_200x32x32x3.npz"
        np.savez(path, arr_0=images.repeat(3, 3), arr_1=labels)
        os.utime(path, (i + 1, i + 1))
    printed = script("metrics=[fid,sfid,is,agreement]")
    assert re.search(r"^agreement_200 +0\.9", printed, re.M)
    assert "fashion_features-" in printed
    assert len(list((tmp_path / "outputs/newer").glob("*.json"))) == 1
    assert not list((tmp_path / "outputs/older").glob("*.json"))


@pytest.mark.parametrize(
    "launcher",
    [["torchrun", "--nproc_per_node=2"], ["mpiexec", "-n", "2", sys.executable]],
    ids=["torchrun", "mpiexec"],
)
@pytest.mark.slow
def test_several_processes_write_one_equal_result(script, batches, tmp_path, launcher):
    script(*batches, f"out={tmp_path / 'one.json'}")
    expected = json.loads((tmp_path / "one.json").read_text())["metrics"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "SAG_CACHE": str(tmp_path / "other"),
        "OMP_NUM_THREADS": "1",
    }
    program = os.path.join(os.path.dirname(sys.executable), launcher[0])
    command = [program, *launcher[1:], str(ROOT / "scripts/evaluate.py"), *batches, f"out={tmp_path / 'two.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert "rank 1 of 2: its share of the features is extracted" in done.stdout or "wrote" in done.stdout
    facts = json.loads((tmp_path / "two.json").read_text())
    assert facts["processes"] == 2
    assert facts["metrics"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reference=null"], r"reference= is missing, and no config next to .*samples\.npz names one: give an npz or a folder"),
        (["reference=nowhere.npz"], r"no file or folder at nowhere\.npz"),
        (["metrics=[fid,fjd]"], "unknown metric 'fjd'; expected any of fid, sfid"),
        (["distance_dtype=float64"], "distance_dtype must be float32 or float16"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["extractor=dinov2"], "the dinov2 extractor needs weights: fetch https://"),
        (
            ["extractor=vgg"],
            "unknown extractor 'vgg'; expected one of dinov2, fashion_features, inception, module, torchscript",
        ),
        (["extractor.network._target_=helpers.NoSuchNetwork"], "NoSuchNetwork"),
        (["sample=3"], "unknown config key 'sample'; did you mean 'samples'"),
        (["neighbour=3"], "unknown config key 'neighbour'; did you mean 'neighbours'"),
        (["+published.source=paper", "+published.year=2023"], "Key 'year' not in 'Published'"),
        (["+published.source=paper"], "extractor is missing"),
        (["out=/proc/scores.json"], r"/proc cannot be written \(.*\); give another place as out="),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(script, batches, tmp_path, arguments, message):
    before = sorted({*tmp_path.iterdir()} - {tmp_path / "cache"})
    groups = [a for a in arguments if a.startswith("extractor=")]
    common = [b for b in batches if not (groups and b.startswith("extractor"))]
    with pytest.raises(SystemExit) as caught:
        script(*common, *arguments)
    text = str(caught.value.code)
    assert text.startswith("error: ")
    assert "\n" not in text
    assert re.search(message, text), text
    assert sorted({*tmp_path.iterdir()} - {tmp_path / "cache"}) == before


def test_the_self_check_passes_and_can_fail(script, monkeypatch, capsys):
    import evaluations.self_check as checks

    with pytest.raises(SystemExit) as caught:
        script("self_check=true")
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert printed.count(" ok\n") == len(checks.CHECKS)
    monkeypatch.setattr(checks, "CHECKS", [("a stage", 0.0, lambda: 1.0)])
    with pytest.raises(SystemExit, match="the self-check failed"):
        script("self_check=true")
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_of_adms_evaluator(tmp_path, batches):
    torch.save(Inception("random").state_dict(), tmp_path / "weights.pth")
    np.savez(tmp_path / "few.npz", arr_0=random_images(0, 6))
    evaluator = [sys.executable, str(ROOT / "evaluations/evaluator.py")]
    refused = subprocess.run(
        [*evaluator, str(tmp_path / "few.npz"), str(tmp_path / "few.npz"), "--weights", str(tmp_path / "weights.pth")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "is damaged or another file" in refused.stderr
    missing = subprocess.run([*evaluator, "nowhere.npz", "nowhere.npz"], capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (1, "error: no file or folder at nowhere.npz\n")


def test_the_help_of_adms_evaluator_needs_no_network_library():
    code = """
import runpy, sys
sys.argv = ["evaluator.py", "--help"]
try:
    runpy.run_path("evaluations/evaluator.py", run_name="__main__")
except SystemExit:
    print({"torch", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage: evaluator.py"), done.stderr
    assert done.stdout.endswith("set()\n")


def test_the_five_lines_of_adms_evaluator(tmp_path, monkeypatch, capsys):
    from evaluations import evaluator

    np.savez(tmp_path / "few.npz", arr_0=random_images(0, 6))
    monkeypatch.setattr("evaluations.inception.Inception", lambda weights: Inception("random"))
    monkeypatch.setattr(sys, "argv", ["evaluator.py", str(tmp_path / "few.npz"), str(tmp_path / "few.npz")])
    evaluator.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    values = [float(line.split(": ")[1]) for line in lines]
    assert values[0] >= 1
    assert values[1:] == pytest.approx([0, 0, 1, 1], abs=1e-9)


ACCEPTANCE = os.environ.get("SAG_ACCEPTANCE")


@pytest.mark.slow
@pytest.mark.skipif(not ACCEPTANCE, reason="SAG_ACCEPTANCE names no folder with the published sample and reference batches")
@pytest.mark.parametrize(
    ("samples", "reference"),
    [
        ("admnet_guided_upsampled_imagenet256", "VIRTUAL_imagenet256_labeled"),
        ("admnet_guided_imagenet128", "VIRTUAL_imagenet128_labeled"),
    ],
)
def test_acceptance(script, tmp_path, samples, reference):
    folder = [f"samples={ACCEPTANCE}/{samples}.npz", f"reference={ACCEPTANCE}/{reference}.npz", f"published={samples}"]
    printed = script(*folder, "distance_dtype=float16", "metrics=[fid,sfid,is,precision,recall]", f"out={tmp_path / 'a.json'}")
    assert printed.count("within") == 5
