"""What is on disk belongs to the user: a program replaces and removes only what a run with the same settings wrote."""

import functools
import json
import re
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import golden_images, random_images
from PIL import Image

from evaluations.benchmark import evaluation
from evaluations.score_files import find_samples
from evaluations.study import compare
from evaluations.study.results import Results, Run
from evaluations.study.rows import Row
from sag.checkpoints import load_checkpoint
from sag.sampling import Job, runner
from scripts import benchmark, demo, evaluate, make_reference, report, reproduce, sample, train, visualize

QUICK = ["num_samples=6", "batch_size=4", "sampler.steps=2", "device=cpu"]
FIRST, SECOND = "shards/00000000-00000003.npz", "shards/00000004-00000005.npz"
TARGET = "samples_6x32x32x3.npz"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder, *names):
    """Write files of the user, and return what the folder then holds."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"the user's own {name}".encode())
    return contents(folder)


@pytest.fixture
def sampled(run_script, monkeypatch):
    """Run scripts/sample.py; returns the rows that were made and what was printed."""
    make = Job.make

    def call(*arguments):
        rows = []
        with monkeypatch.context() as counting:
            counting.setattr(Job, "make", lambda job, own, watch: rows.extend(own) or make(job, own, watch))
            printed = run_script(sample.main, "sample", sample.SampleConfig, *arguments)
        return rows, printed

    return call


@pytest.fixture
def killed(sampled, monkeypatch):
    """Run scripts/sample.py up to a function of `sag.sampling.shards`."""

    def call(moment, *arguments):
        with monkeypatch.context() as dying:
            dying.setattr(runner.shards, moment, lambda *arguments: sys.exit("killed"))
            with pytest.raises(SystemExit, match="killed"):
                sampled(*arguments)

    return call


def refused(call, *arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        call(*arguments)
    assert str(caught.value.code).startswith("error: ")
    assert "\n" not in str(caught.value.code)


def images(path):
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["arr_0"]


@pytest.mark.parametrize("name", ["grid.png", "record.json", TARGET, FIRST, "shards/notes.txt", f"{FIRST}.claim"])
def test_sampling_is_refused_where_a_file_of_somebody_else_is_in_the_way(sampled, tmp_path, name):
    before = put(tmp_path, name, "vgg.pt")
    refused(sampled, *QUICK, f"out={tmp_path}", message=rf"{name} is there already, and no run with these settings wrote it")
    assert contents(tmp_path) == before


def test_a_folder_in_the_way_is_not_written_to(sampled, tmp_path):
    (tmp_path / "grid.png").mkdir()
    refused(sampled, *QUICK, f"out={tmp_path}", message=r"grid\.png is there already")
    put(tmp_path / "other", "shards")
    refused(sampled, *QUICK, f"out={tmp_path / 'other'}", message="shards is a file, where the run needs a folder")


@pytest.mark.parametrize("content", [b"a: 1\n", b"\xff\xfe\x00", b"- a\n", b"{[", b""])
def test_a_config_that_no_run_wrote_is_left_alone(run_script, sampled, tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    train_script = functools.partial(run_script, train.main, "train", train.TrainConfig)
    for call, arguments in ((sampled, QUICK), (train_script, ["device=cpu"])):
        refused(call, *arguments, f"out={tmp_path}", message=r"config\.yaml is there already, and no run wrote it")
    assert contents(tmp_path) == {Path("config.yaml"): content}


def test_files_that_are_not_in_the_way_are_left_alone(sampled, killed, tmp_path):
    out = tmp_path / "out"
    names = ["vgg.pt", "samples_5x32x32x3.npz", ".notes.part", ".grid.png.part", "deep/grid.png"]
    before = put(out, *names)
    killed("pack", *QUICK, f"out={out}")
    put(out, "shards/notes.txt", "shards/.0.npz.part", "shards/00000000.npz")
    sampled(*QUICK, f"out={out}")
    after = contents(out)
    assert {name: after.get(name) for name in before} == before
    assert {path.name for path in (out / "shards").iterdir()} == {"notes.txt", ".0.npz.part", "00000000.npz"}
    assert (out / TARGET).exists()


def test_a_file_that_comes_into_the_way_of_a_run_stops_it_and_nothing_is_lost(sampled, killed, tmp_path):
    killed("check_shards", *QUICK, f"out={tmp_path}")
    before = put(tmp_path, "grid.png")
    refused(sampled, *QUICK, f"out={tmp_path}", message=r"grid\.png is there already")
    assert contents(tmp_path) == before
    (tmp_path / "grid.png").rename(tmp_path / "mine.png")
    rows, _ = sampled(*QUICK, f"out={tmp_path}")
    assert rows == []
    assert (tmp_path / TARGET).exists()


@pytest.mark.parametrize("indices", [[], ["indices=[3,1,4,0,5,9]"]])
def test_a_smaller_batch_continues_a_run(sampled, killed, tmp_path, indices):
    killed("check_shards", *QUICK, *indices, f"out={tmp_path / 'out'}")
    (tmp_path / "out" / SECOND).unlink()
    rows, _ = sampled(*QUICK, *indices, "batch_size=3", f"out={tmp_path / 'out'}")
    assert rows == [4, 5]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "grid.png", "record.json", TARGET]
    assert "batch_size: 3" in (tmp_path / "out/config.yaml").read_text()
    assert json.loads((tmp_path / "out/record.json").read_text())["reused"] == 4
    sampled(*QUICK, *indices, f"out={tmp_path / 'whole'}")
    assert np.array_equal(images(tmp_path / "out" / TARGET), images(tmp_path / "whole" / TARGET))


def test_more_samples_extend_a_finished_run_and_fewer_are_taken_from_it(sampled, tmp_path):
    out = tmp_path / "out"
    assert sampled(*QUICK, f"out={out}")[0] == [0, 1, 2, 3, 4, 5]
    six = (out / TARGET).read_bytes()
    assert sampled(*QUICK, "num_samples=8", f"out={out}")[0] == [6, 7]
    assert sampled(*QUICK, "num_samples=3", f"out={out}")[0] == []
    assert (out / TARGET).read_bytes() == six
    eight, three = (images(out / f"samples_{n}x32x32x3.npz") for n in (8, 3))
    assert np.array_equal(eight[:6], images(out / TARGET))
    assert np.array_equal(three, eight[:3])
    sampled(*QUICK, "num_samples=8", f"out={tmp_path / 'whole'}")
    difference = eight.astype(int) - images(tmp_path / "whole/samples_8x32x32x3.npz")
    assert np.abs(difference).max() <= 1  # other batches round differently: at most a grey level
    assert "is there already" in sampled(*QUICK, f"out={out}")[1]
    assert not (out / "shards").exists()
    with pytest.raises(ValueError, match=r"holds several sample batches \(.*\); give one of them as samples="):
        find_samples(str(out))


def test_a_damaged_batch_is_not_extended_but_made_anew(sampled, tmp_path):
    sampled(*QUICK, f"out={tmp_path}")
    damaged = bytearray((tmp_path / TARGET).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / TARGET).write_bytes(damaged)
    assert sampled(*QUICK, "num_samples=8", f"out={tmp_path}")[0] == list(range(8))


def test_extending_on_a_blob_store(sampled, bucket):
    sampled(*QUICK, f"out={bucket}")
    assert sampled(*QUICK, "num_samples=8", f"out={bucket}")[0] == [6, 7]
    assert {"samples_6x32x32x3.npz", "samples_8x32x32x3.npz"} <= bucket.names()


def test_a_config_edited_by_hand_stays_as_it_is(sampled, tmp_path):
    sampled(*QUICK, f"out={tmp_path}")
    edited = (tmp_path / "config.yaml").read_text() + "# my best run\n"
    (tmp_path / "config.yaml").write_text(edited)
    sampled(*QUICK, "num_samples=8", f"out={tmp_path}")
    assert (tmp_path / "config.yaml").read_text() == edited


def equal(monkeypatch, groups):
    """Have the samples of each group be equal."""
    make = Job.make
    first = {row: min(group) for group in groups for row in group}

    def repeating(job, rows, watch):
        found = make(job, [first.get(row, row) for row in rows], watch)
        return found

    monkeypatch.setattr(Job, "make", repeating)


@pytest.mark.parametrize(
    ("groups", "policy", "message"),
    [
        ([[1, 2]], None, "warning   samples 1 and 2 in .* are identical$"),
        ([[1, 2, 5]], None, "warning   samples 1 and 2 in .* are identical, and 1 more repeat earlier ones$"),
        ([[1, 2]], "refuse", None),
        ([[0, 1, 2, 3, 4, 5]], None, None),
        ([[0, 2], [1, 3]], None, None),  # the second shard repeats the first
        ([[0, 1, 2, 3, 4, 5]], "warn", "warning   samples 0 and 1 in"),
    ],
)
def test_equal_images(run_script, tmp_path, monkeypatch, groups, policy, message):
    equal(monkeypatch, groups)
    arguments = [*QUICK, "batch_size=2", f"out={tmp_path / 'out'}", *([] if policy is None else [f"duplicates={policy}"])]

    def call(*more):
        return run_script(sample.main, "sample", sample.SampleConfig, *arguments, *more)

    if message is None:
        with pytest.raises(SystemExit, match=r"identical.*nothing was packed; if equal images are expected"):
            call()
        assert not (tmp_path / "out" / TARGET).exists()
        call("duplicates=warn")
    else:
        printed = call()
        assert any(re.search(message, line) for line in printed.splitlines()), printed
    assert (tmp_path / "out" / TARGET).exists()


TRAIN = [
    *[
        "model.network.image_size=16",
        "model.network.in_channels=3",
        "model.network.out_channels=6",
        "model.network.model_channels=32",
    ],
    *["model.network.num_res_blocks=1", "model.network.channel_mult=[1,2]", "model.network.attention_resolutions=[8]"],
    *["model.network.num_classes=null", "model.null_label=null", "settings.batch_size=4", "log_every=1", "grid_steps=1"],
    "device=cpu",
]


@pytest.fixture
def trained(run_script, tmp_path):
    np.savez(tmp_path / "data.npz", random_images(0, 12, size=16))

    def call(*arguments):
        data = ["data=npz", f"data.path={tmp_path / 'data.npz'}"]
        return run_script(train.main, "train", train.TrainConfig, *TRAIN, *data, f"out={tmp_path / 'run'}", *arguments)

    return call


@pytest.mark.parametrize(
    "name",
    ["model010000.pt", "ema_0.9999_000500.pt", "opt010000.pt", "model000000.pt", "grid000001.png", "log.csv", "state.json"],
)
def test_training_is_refused_where_somebody_elses_is(trained, tmp_path, name):
    before = put(tmp_path / "run", name, "vgg.pt")
    refused(trained, "settings.steps=1", message=rf"run/{name} is there already, and (this run did not write it|no run)")
    assert contents(tmp_path / "run") == before


def test_training_keeps_all_files_but_its_own_older_checkpoint(trained, tmp_path):
    run = tmp_path / "run"
    before = put(run, "vgg.pt", "ema.pt", "notes.txt", "modelx.pt")
    trained("settings.steps=2")
    put(run, "model000001.pt")  # of a step that is past
    trained("settings.steps=3")
    names = {path.name for path in run.iterdir()}
    steps = ["model000003.pt", "ema_0.9999_000003.pt", "opt000003.pt", "timesteps000003.pt", "model000001.pt"]
    assert names == {*steps, *map(str, before), "grid000002.png", "grid000003.png", "state.json", "config.yaml", "log.csv"}
    after = contents(run)
    assert {name: after[name] for name in before} == before
    put(run, "model000004.pt")
    before = contents(run)
    refused(trained, "settings.steps=4", message=r"model000004\.pt is there already, and this run did not write it.*start=")
    assert contents(run) == before


def test_the_file_that_training_starts_from_stays(trained, tmp_path):
    run = tmp_path / "run"
    trained("settings.steps=1")
    start = run / "begin.pt"
    torch.save(load_checkpoint(str(run / "model000001.pt")), start)
    content = start.read_bytes()
    for path in run.iterdir():
        if path != start:
            path.unlink()
    trained("settings.steps=1", f"start={start}")
    assert start.read_bytes() == content


@pytest.mark.parametrize("damage", ["", "[1", '{"step": "x"}', '{"step": -1}', '{"step": 2, "files": 3}', '"text"', "\x00"])
def test_a_damaged_state_is_said_with_its_name(trained, tmp_path, damage):
    trained("settings.steps=2")
    (tmp_path / "run/state.json").write_text(damage)
    before = contents(tmp_path / "run")
    refused(trained, "settings.steps=3", message=r"run/state\.json cannot be used to continue the run: it is not the")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("model000002.pt", damage) for damage in ("empty", "cut", "junk", "gone", "other")),
        *(("opt000002.pt", damage) for damage in ("empty", "cut", "other")),
        *(("ema_0.9999_000002.pt", damage) for damage in ("gone", "other")),
        ("timesteps000002.pt", "junk"),
    ],
)
def test_a_damaged_checkpoint_is_said_with_its_name(trained, tmp_path, name, damage):
    trained("settings.steps=2")
    path = tmp_path / "run" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "junk": b"junk" * 100}[damage])
    refused(trained, "settings.steps=3", message=rf"run/{name} cannot be used to continue the run")


def test_training_does_not_continue_on_other_data(trained, tmp_path):
    trained("settings.steps=2")
    assert "from step 2 to 3" in trained("settings.steps=3")
    np.savez(tmp_path / "data.npz", random_images(1, 12, size=16))
    refused(trained, "settings.steps=4", message="the run in .*, which stopped at step 3, was trained with other data")
    np.savez(tmp_path / "data.npz", random_images(0, 12, size=16))
    assert "from step 3 to 4" in trained("settings.steps=4")


def test_training_of_an_earlier_version_continues(trained, tmp_path):
    trained("settings.steps=2")
    (tmp_path / "run/state.json").write_text('{"step": 2}')
    assert "from step 2 to 3" in trained("settings.steps=3")
    assert not (tmp_path / "run/model000002.pt").exists()


REFERENCE = ["extractor=fashion_features", "device=cpu"]


@pytest.fixture
def batches(tmp_path):
    pixels, labels = golden_images()
    np.savez(tmp_path / "samples.npz", pixels[:100], labels[:100])
    np.savez(tmp_path / "reference.npz", pixels[100:], labels[100:])
    return tmp_path


def test_scores_leave_other_files_alone(run_script, batches):
    def call(*arguments):
        places = [f"samples={batches}/samples.npz", f"reference={batches}/reference.npz", f"out={batches}/scores.json"]
        return run_script(evaluate.main, "evaluate", evaluate.EvaluateConfig, *places, *REFERENCE, "metrics=[fid]", *arguments)

    before = put(batches, ".scores.features/mine.npz", ".scores.features/deep/00000000.npz")
    call()
    after = contents(batches)
    assert {name: after[name] for name in before} == before
    assert {path for path in set(after) - set(before) if path.parts[0] != "cache"} == {Path("scores.json")}
    (batches / "scores.json").write_bytes(b"mine")
    refused(call, message=r"scores\.json is there already, and does not hold scores")
    assert (batches / "scores.json").read_bytes() == b"mine"


def test_a_reference_leaves_other_files_alone(run_script, batches):
    before = put(batches, ".new.features/mine.npz")
    arguments = ["data=npz", f"data.path={batches}/samples.npz", f"out={batches}/new.npz", *REFERENCE]
    run_script(make_reference.main, "make_reference", make_reference.MakeReferenceConfig, *arguments)
    after = contents(batches)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {Path("new.npz")}


def run_at_once(row, folder, device, **options):
    """In place of `Row.run`: it takes no time."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "samples_10x8x8x3.npz", random_images(0, 10))
    return Run(row.key, "demo", row.name, 0, 10, {}, {"extractor": "e"}, {"fid": 1.0})


@pytest.mark.parametrize(
    ("program", "arguments", "names"),
    [
        pytest.param(
            visualize,
            ["sampler.steps=2", "samples=[0]", "moments=1", "device=cpu"],
            ["output.2.png", "output.2.gif", "record.json"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            demo,
            ["num_samples=10", "device=cpu"],
            ["samples.png", "table.md", "record.json"],
            marks=pytest.mark.slow,
        ),
        (benchmark, ["part=evaluation", "samples=[10]", "device=cpu"], ["evaluation.json"]),
    ],
    ids=["visualize", "demo", "benchmark"],
)
def test_programs_replace_their_own_files_only(run_script, tmp_path, monkeypatch, program, arguments, names):
    name = program.__name__.removeprefix("scripts.")
    schema = getattr(program, f"{name.capitalize()}Config")
    quick = evaluation.Evaluation([], evaluation.Frechet(1.0, 2.0, 0.0, 64), evaluation.InceptionSpeed(2, 1.0))
    monkeypatch.setattr(evaluation, "benchmark_evaluation", lambda *arguments, **options: quick)
    monkeypatch.setattr(Row, "run", run_at_once)
    monkeypatch.setattr(Row, "moments", lambda row, device: [])
    monkeypatch.setattr(compare, "draw_strip", lambda moments, path, kinds: path.write_bytes(b""))

    def call(*more):
        return run_script(program.main, name, schema, *arguments, f"out={tmp_path / 'out'}", *more)

    for foreign in names:
        before = put(tmp_path / "out", foreign)
        refused(call, message=rf"{foreign} is there already, and no run with these settings wrote it")
        assert contents(tmp_path / "out") == before
        (tmp_path / "out" / foreign).unlink()
    before = put(tmp_path / "out", "mine.txt")
    call()
    call()
    first = contents(tmp_path / "out")
    assert {path: first[path] for path in before} == before
    other = {"visualize": "seed=1", "demo": "seed=1", "benchmark": "batch_size=3"}[name]
    refused(call, other, message="is there already, and no run with these settings wrote it|holds results of other settings")
    assert contents(tmp_path / "out") == first


def test_a_report_replaces_its_own_files_only(run_script, tmp_path):
    runs = Results(tmp_path / "results.sqlite")
    runs.add(Run("k", "scale", "SAG", 0, 10, {}, metrics={"fid": 1.0}, scoring={"extractor": "e"}))

    def call(*more):
        places = [f"results={tmp_path / 'results.sqlite'}", f"out={tmp_path / 'report'}"]
        return run_script(report.main, "report", report.ReportConfig, *places, *more)

    for name in ("report.html", "scale.png", "results.csv", "record.json"):
        before = put(tmp_path / "report", name)
        refused(call, message=rf"{name} is there already, and no run with these settings wrote it")
        assert contents(tmp_path / "report") == before
        (tmp_path / "report" / name).unlink()
    put(tmp_path / "report", "mine.html")
    call()
    call()
    assert (tmp_path / "report/mine.html").read_bytes() == b"the user's own mine.html"


@pytest.mark.slow
def test_reproducing_removes_its_own_samples_only(run_script, tmp_path):
    arguments = ["table=fashion", "rows=[SAG]", "num_samples=8", "seeds=[0]", "device=cpu", f"results={tmp_path / 'r.sqlite'}"]
    common = "common=['model=fashion32','sampler=ddim','sampler.steps=ddim2','batch_size=8']"

    def call(out, *more):
        places = [*arguments, common, f"out={out}", *more]
        return run_script(reproduce.main, "reproduce", reproduce.ReproduceConfig, *places)

    call(tmp_path / "rows")
    (folder,) = (tmp_path / "rows").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".png", ".yaml", ".json"}
    before = put(tmp_path / "again" / folder.name, "samples_5x32x32x3.npz", "notes.txt")
    call(tmp_path / "again", f"results={tmp_path / 's.sqlite'}")
    after = contents(tmp_path / "again" / folder.name)
    assert {name: after[name] for name in before} == before
    put(tmp_path / "third" / folder.name, "masks.png")
    refused(
        call,
        tmp_path / "third",
        f"results={tmp_path / 't.sqlite'}",
        message=r"masks\.png is there already, and no run with these",
    )


def test_a_database_of_somebody_else_is_left_alone(run_script, tmp_path):
    with sqlite3.connect(tmp_path / "mine.sqlite") as mine:
        mine.execute("CREATE TABLE patients (name)")
    (tmp_path / "empty.sqlite").touch()
    before = contents(tmp_path)
    for name in ("mine.sqlite", "empty.sqlite"):
        arguments = ["table=fashion", "rows=[SAG]", f"results={tmp_path / name}", f"out={tmp_path / 'rows'}", "device=cpu"]
        refused(
            lambda arguments=arguments: run_script(reproduce.main, "reproduce", reproduce.ReproduceConfig, *arguments),
            message=rf"{name} is no file of results",
        )
    assert contents(tmp_path) == before


def test_pictures_of_a_run_are_not_written_over(sampled, tmp_path):
    sampled(*QUICK, f"out={tmp_path}")
    Image.open(tmp_path / "grid.png").verify()
    (tmp_path / "record.json").write_text("{}")
    before = contents(tmp_path)
    refused(sampled, *QUICK, "num_samples=8", f"out={tmp_path}", message=r"grid\.png is there already|record\.json is there")
    assert contents(tmp_path) == before
