"""The store of scored runs: what goes in comes out, from many processes, and nothing is half written."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from evaluations.study import results
from evaluations.study.results import Results, Run

RUN = Run(
    key="k",
    table="main",
    row="SAG",
    seed=0,
    num_samples=10,
    settings={"model": {"name": "fashion32"}, "list": [1, 2]},
    scoring={"extractor": "tiny"},
    metrics={"fid": 1.5},
    published={"values": {"fid": 1.4}},
    record={"commit": "abc"},
    seconds=2.5,
    folder="outputs/rows/k",
    time=1.0,
)


def test_what_goes_in_comes_out_and_the_later_of_one_key_and_row_stays(tmp_path):
    store = Results(tmp_path / "new/results.sqlite")
    assert store.runs() == []
    assert not store.path.exists()
    failed = replace(RUN, key="l", metrics={}, error="it failed", seconds=None, time=2.0)
    elsewhere = replace(RUN, table="scale", time=3.0)
    for run in (RUN, failed, elsewhere):
        store.add(run)
    assert Results(store.path).runs() == [RUN, failed, elsewhere]
    mended = replace(failed, error=None, metrics={"fid": 1.0}, time=4.0)
    store.add(mended)
    assert store.runs() == [RUN, elsewhere, mended]


@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1, -(2**70)])
def test_seeds_beyond_the_integers_of_sqlite_come_out_as_they_went_in(tmp_path, seed):
    store = Results(tmp_path / "results.sqlite")
    store.add(replace(RUN, seed=seed))
    assert store.runs() == [replace(RUN, seed=seed)]


def test_several_processes_add_at_once(tmp_path):
    program = (
        "import sys; from pathlib import Path; from evaluations.study.results import Results, Run\n"
        "for i in range(20): Results(Path(sys.argv[1])).add(Run(f'{sys.argv[2]}-{i}', 't', 'r', i, 1, {}))"
    )
    path = tmp_path / "results.sqlite"
    processes = [subprocess.Popen([sys.executable, "-c", program, path, str(n)]) for n in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    assert {run.key for run in Results(path).runs()} == {f"{n}-{i}" for n in range(3) for i in range(20)}


def test_a_locked_or_foreign_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PATIENCE", 0.1)
    store = Results(tmp_path / "results.sqlite")
    store.add(RUN)
    holder = sqlite3.connect(store.path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"results\.sqlite has been held by another process"):
        store.add(replace(RUN, key="m"))
    holder.rollback()
    holder.close()
    assert store.runs() == [RUN]
    other = tmp_path / "other"
    other.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    for use in (Results(other).runs, lambda: Results(other).add(RUN)):
        with pytest.raises(ValueError, match=r"other is no file of results"):
            use()
    assert other.read_bytes().startswith(b"no database")
