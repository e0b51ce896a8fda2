"""Settings that former versions recorded: they are brought to their present form, and their runs go on."""

import copy
from dataclasses import replace
from hashlib import sha256

import pytest
from helpers import small_denoiser

import sag
from evaluations.study.results import Results, Run, key_of
from sag.diffusion import DDIM
from sag.records import CONFIG, as_recorded, check_folder, fingerprint, former_folder, modern, to_yaml
from sag.sampling import Job
from sag.storage import LocalFolder

MODEL = {"name": "small", "steps": 2}
SAG = {"_target_": "sag.guidance.SelfAttentionGuidance", "scale": 0.3, "layer": "output.1", "blur_sigma": 1}
NOW = {"model": MODEL, "guidance": {"sag": {**SAG, "heads": "own"}}, "num_samples": 2, "batch_size": 2, "seed": 0}
FORMER = {
    **NOW,
    "model": {**MODEL, "sag": {"scale": 0.3, "layer": "output.1", "blur_sigma": 1}},
    "guidance": {"sag": {**SAG, "heads": True}},
}


def former_key(settings, scoring):
    """The key of a result as a former version made it."""
    return sha256("\n".join([fingerprint(settings), *sorted(scoring)]).encode()).hexdigest()


def test_settings_get_their_present_form():
    given = copy.deepcopy(FORMER)
    assert modern(given) == NOW
    assert given == FORMER
    assert modern(NOW) == NOW
    released = {"guidance": {"sag": {**SAG, "heads": "released"}, "mine": {"_target_": "mine.Guidance", "heads": True}}}
    assert modern(released) == released
    for former, now in {
        "sag.storage.FolderImages": "sag.data.FolderImages",
        "sag.storage.NpzImages": "sag.data.NpzImages",
        "sag.training.data.fashion_mnist": "sag.data.fashion_mnist.fashion_mnist",
        "mine.Images": "mine.Images",
    }.items():
        assert modern({"data": {"_target_": former, "path": "x"}}) == {"data": {"_target_": now, "path": "x"}}
    for text in ({}, {"model": None, "guidance": [1], "data": "x"}, {"guidance": {"sag": None}, "data": {"_target_": [1]}}):
        assert modern(text) == text


def test_a_folder_of_a_former_version_is_one_of_the_same_settings(tmp_path):
    folder = LocalFolder(tmp_path)
    assert as_recorded(folder, NOW) == NOW  # there is nothing yet
    folder.create(CONFIG, to_yaml({**FORMER, "num_samples": 9}).encode())
    check_folder(folder, NOW, ["num_samples"])
    assert as_recorded(folder, NOW, ["num_samples"]) == FORMER
    other = {**NOW, "seed": 1}
    with pytest.raises(
        ValueError, match=r"results of other settings.*: num_samples \(9 there, 2 here\), seed \(0 there, 1 here\)"
    ):
        check_folder(folder, other)
    assert as_recorded(folder, other) == other


def test_a_run_of_a_former_version_goes_on(tmp_path):
    job = Job(small_denoiser(), FORMER, range(2), sampler=DDIM(2), batch_size=2)
    sag.sampling.run(job, tmp_path / "out")
    longer = replace(job, settings={**NOW, "num_samples": 5}, indices=range(5))
    sampled = sag.sampling.run(longer, tmp_path / "out")
    assert (sampled.new, sampled.record["reused"]) == (True, 2)
    assert not sag.sampling.run(longer, tmp_path / "out").new
    recorded = (tmp_path / "out" / CONFIG).read_bytes()
    assert recorded == to_yaml({**FORMER, "num_samples": 5, "bits": 8, "indices": None}).encode()
    with pytest.raises(ValueError, match=r"guidance.sag.scale \(0.3 there, 0.5 here\)$"):
        sag.sampling.run(
            replace(longer, settings={**NOW, "guidance": {"sag": {**NOW["guidance"]["sag"], "scale": 0.5}}}), tmp_path / "out"
        )


def test_the_folder_that_a_former_version_named_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = sag.compose("sample", ["num_samples=4"])
    named = sag.build.out_folder(cfg)
    settings = sag.build.identity(cfg)
    settings["model"]["sag"] = {"scale": 0.3, "layer": "output.2", "blur_sigma": 1}
    settings["guidance"]["sag"]["heads"] = True
    for name, changes in {"fashion32-sag-00000000": {"seed": 5}, "fashion32-sag-11111111": {"num_samples": 9}}.items():
        LocalFolder(tmp_path / "outputs" / name).create(CONFIG, to_yaml({**settings, **changes}).encode())
    assert sag.build.out_folder(cfg) == "outputs/fashion32-sag-11111111"
    assert sag.build.out_folder(sag.compose("sample", ["num_samples=4", "seed=6"])) not in (
        named,
        "outputs/fashion32-sag-11111111",
    )
    assert former_folder(tmp_path / "outputs", "*", sag.build.identity(cfg)) is None  # 9 samples are not 4
    LocalFolder(tmp_path / named).create("grid.png", b"")
    assert sag.build.out_folder(cfg) == named


def test_results_of_a_former_version_have_the_keys_of_this_one(tmp_path):
    store, scoring = Results(tmp_path / "results.sqlite"), ["b=1", "a=2"]
    keys = {name: former_key(FORMER, own) for name, own in {"plain": [], "scored": scoring, "other": ["c=3"]}.items()}
    for name, key in keys.items():
        store.add(Run(key, "t", name, 0, 2, FORMER))
    store.add(Run(key_of(NOW, []), "t", "now", 0, 2, NOW))
    found = {run.row: run for run in store.runs([], scoring)}
    assert all(run.settings == NOW for run in found.values())
    assert found["plain"].key == found["now"].key == key_of(NOW, [])
    assert found["scored"].key == key_of(NOW, scoring)
    assert found["other"].key == keys["other"]
    assert {run.row: run.key for run in store.runs()} == {**keys, "now": key_of(NOW, [])}
