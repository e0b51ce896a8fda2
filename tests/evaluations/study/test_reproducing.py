"""Rows are run once, whatever happens meanwhile; the function returns what it did and prints nothing."""

import logging

import pytest
from helpers import GOLDEN

from evaluations.study.reproduce import reproduce
from evaluations.study.results import Results
from evaluations.study.rows import Row, compose_row
from sag.distributed import Process

SMALL = ["num_samples=4", "batch_size=4", "sampler=ddim", "sampler.steps=ddim2"]
SCORING = [
    "extractor=module",
    "extractor.network._target_=helpers.TinyNetwork",
    f"reference={GOLDEN / 'fashion_mnist_200.npz'}",
]


def row(table, name, *overrides):
    return compose_row(table, name, [*SMALL, *overrides], SCORING)


@pytest.fixture
def call(tmp_path):
    return lambda *rows, **options: reproduce(rows, tmp_path / "results.sqlite", tmp_path / "rows", "cpu", **options)


def test_new_rows_are_run_and_equal_ones_are_copied(call, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    first = call(row("t", "SAG", "guidance=[sag]"), row("t", "none", "guidance=[]"))
    assert [run.row for run in first.new] == [run.row for run in first.runs] == ["SAG", "none"]
    assert [record.getMessage() for record in caplog.records] == ["t: SAG, seed 0", "t: none, seed 0"]
    assert first.tables[0].note.count("there are only 4 samples") == 1
    assert [table.title for table in first.tables] == ["t"]
    assert sorted(path.name for path in (tmp_path / "rows").glob("*/masks.png")) == ["masks.png"]
    assert not list(tmp_path.glob("rows/*/samples_*"))
    caplog.clear()
    second = call(row("t", "none", "guidance=[]"), row("u", "nothing", "guidance=[]"))
    assert [(run.table, run.row) for run in second.new] == [("u", "nothing")]
    assert [(run.table, run.row) for run in second.runs] == [("t", "none"), ("u", "nothing")]
    assert second.runs[0].metrics == second.runs[1].metrics
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_samples_stay_if_they_are_asked_for(call, tmp_path):
    call(row("t", "none"), keep_samples=True)
    assert len(list(tmp_path.glob("rows/*/samples_4x32x32x3.npz"))) == 1


def test_what_is_scored_stays_where_a_later_row_fails(call, tmp_path, monkeypatch):
    run = Row.run

    def fails(self, *arguments, **options):
        if self.name == "second":
            raise OSError("no space left on device")
        return run(self, *arguments, **options)

    rows = [row("t", "first"), row("t", "second", "seed=1")]
    with monkeypatch.context() as patch:
        patch.setattr(Row, "run", fails)
        with pytest.raises(OSError, match="no space left"):
            call(*rows)
    assert [found.row for found in Results(tmp_path / "results.sqlite").runs()] == ["first"]
    assert [found.row for found in call(*rows).new] == ["second"]


def test_a_picture_of_somebody_else_is_left_alone_and_named_before_the_work(call, tmp_path):
    asked = row("t", "SAG", "guidance=[sag]")
    folder = tmp_path / "rows" / asked.key[:12]
    folder.mkdir(parents=True)
    (folder / "masks.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"masks\.png is there already"):
        call(asked)
    assert [path.name for path in folder.iterdir()] == ["masks.png"]


def test_other_processes_only_share_the_work(call):
    asked = row("t", "none")
    assert call(asked).runs
    assert call(asked, process=Process(1, 2, 1)) is None
