"""Sweeps: every point once, the same noise, a failure that stops nothing, and a sweeper that minimises."""

import sys

import pytest
from helpers import GOLDEN
from hydra.core.global_hydra import GlobalHydra

from evaluations.study.results import Results
from evaluations.study.rows import Row
from scripts import sweep
from scripts.common import run

REFERENCE = GOLDEN / "fashion_mnist_200.npz"
SCORING = f"['metrics=[fid]','extractor=module','extractor.network._target_=helpers.TinyNetwork','reference={REFERENCE}']"
QUICK = ["num_samples=4", "batch_size=4", "sampler=ddim", "sampler.steps=2", f"scoring={SCORING}", "device=cpu"]


@pytest.fixture
def script(run_script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_script(sweep.main, "sweep", sweep.SweepConfig, *QUICK, *arguments)


@pytest.fixture
def store(tmp_path):
    return Results(tmp_path / "outputs/results.sqlite")


@pytest.mark.slow
def test_of_twelve_points_one_fails_and_eleven_are_scored(script, store):
    grid = ["guidance.sag.scale=0.1,0.2,0.3,0.4", "guidance.sag.layer=output.2,middle,output.4"]
    points = [*grid, "guidance.sag.threshold=1.0"]
    write, failing = Row.run, "scale=0.2 guidance.sag.layer=middle"

    def fails_once(row, *arguments, **options):
        if failing in row.name:
            raise FloatingPointError("step 1 of 2 gave values that are not finite")
        return write(row, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Row, "run", fails_once)
        with pytest.raises(SystemExit, match=rf"1 of the points failed \(.*{failing}.*the same command tries"):
            script(*points)
    found = store.runs()
    assert len(found) == 12
    (failed,) = [run for run in found if run.error is not None]
    assert failed.error == "step 1 of 2 gave values that are not finite"
    assert len({run.metrics["fid"] for run in found if run.error is None}) == 11
    assert len({run.folder for run in found if run.error is None}) == 11
    before = {run.key: run.time for run in found if run.error is None}
    printed = script(*points)
    assert printed.count("note      sweep: ") == 1
    again = store.runs()
    assert [run.error for run in again] == [None] * 12
    assert all(run.time == before[run.key] for run in again if run.key in before)


@pytest.mark.slow
def test_sweeps_of_another_number_of_samples_are_tables_of_their_own(script):
    script("guidance.sag.scale=0.1,0.2")
    printed = script("guidance.sag.scale=0.1,0.2", "num_samples=5")
    for count in (4, 5):
        table = printed.split(f"\nsweep ({count} samples)\n\n")[1]
        assert table.startswith(f"| {count} samples | seeds |")
        assert "guidance.sag.scale=0.2 | 1 |" in table


def test_a_point_whose_value_is_refused_stops_nothing(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *QUICK, "guidance.sag.scale=abc,0.5"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit, match=r"1 of the points failed \(.*guidance.sag.scale=abc\)"):
        run(sweep.main, "sweep", sweep.SweepConfig, sweep.failed)
    failed, scored = store.runs()
    assert failed.error == "guidance.sag.scale takes a number or keys of its own, got 'abc'"
    assert "fid" in scored.metrics


@pytest.mark.slow
def test_a_sweeper_minimises_the_objective(script, store):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    arguments = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
    script(*arguments, "guidance.sag.scale=interval(0,1)")
    found = store.runs()
    assert len(found) == 3
    assert len({run.settings["guidance"]["sag"]["scale"] for run in found}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective=is"], "there is no 'is' to minimise; the scores are fid"),
        (["guidance.sag.scales=0,1"], "unknown config key 'guidance.sag.scales'; did you mean 'scale'"),
    ],
)
def test_bad_input_is_one_sentence(script, arguments, message):
    with pytest.raises(SystemExit, match=message):
        script(*arguments)
