"""The program that writes a report: what it prints, and what it says of bad input."""

import pytest

from evaluations.study.results import Results, Run
from scripts import report


@pytest.fixture
def script(run_script, tmp_path):
    scored = {"metrics": {"fid": 1.0}, "scoring": {"extractor": "e"}}
    Results(tmp_path / "results.sqlite").add(Run("k", "scale", "SAG", 0, 10, {}, **scored))
    places = [f"results={tmp_path / 'results.sqlite'}", f"out={tmp_path / 'report'}"]
    return lambda *arguments: run_script(report.main, "report", report.ReportConfig, *places, *arguments)


def test_it_says_what_it_wrote(script, tmp_path):
    printed = script("num_samples=10", "tables=[scale]")
    assert printed == f"wrote {tmp_path}/report/report.html, tables.md, tables.tex, results.csv and a plot of each table\n"
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.html", "tables.md", "tables.tex", "results.csv", "scale.png", "record.json"}


def test_bad_input_is_one_sentence(script, tmp_path):
    with pytest.raises(SystemExit, match=r"error: there are no results of table 'nowhere' in .*; there are of scale"):
        script("tables=[nowhere]")
    assert not (tmp_path / "report").exists()
