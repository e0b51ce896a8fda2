"""The report: its tables, and its page in a browser without a network."""

import csv
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from evaluations.study import report
from evaluations.study.results import Results, Run
from evaluations.study.tables import arrange, base_of

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FAILED = Run("f", "scale", "SAG 9", 0, 10, {}, error="step 3 of 10 gave <values> that are not finite", time=1e12)


def scored(folder, row, scale, fid, seed=0, size=32):
    path = folder / f"rows/{row}-{seed}"
    path.mkdir(parents=True)
    pixels = np.random.default_rng([seed, int(100 * scale)]).integers(0, 256, (4 * size, 4 * size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path / "grid.png")
    Image.fromarray(pixels[:size]).save(path / "masks.png")
    guidance = {"sag": {"scale": scale}} if scale else {}
    metrics = {"fid": fid, "precision": 0.5 + fid / 10, "recall": 0.6}
    facts = {"scoring": {"extractor": "e"}, "record": {"commit": "abc", "device": "cpu"}, "seconds": 1.0, "folder": str(path)}
    return Run(f"{row}-{seed}", "scale", row, seed, 10, {"guidance": guidance}, metrics=metrics, time=time.time(), **facts)


@pytest.fixture
def runs(tmp_path):
    """A row with two seeds and a published number, and seven more rows."""
    published = {"values": {"fid": 1.2}, "num_samples": 50000, "extractor": "e", "mark": "S", "source": "paper"}
    rows = [("no guidance", 0.0, 1.5, 0), ("no guidance", 0.0, 1.7, 1)] + [(f"SAG {s}", s, 1.4 + s, 0) for s in (0.1, 0.3, 1.0)]
    found = [scored(tmp_path, *row) for row in rows] + [FAILED]
    found[0] = replace(found[0], published=published)
    found[1] = replace(found[1], published=published)
    return found


@pytest.fixture
def write(tmp_path, runs):
    """Write a report of the runs."""
    for run in runs:
        Results(tmp_path / "results.sqlite").add(run)
    given = {"results": tmp_path / "results.sqlite", "out": tmp_path / "report"}
    return lambda **options: report.write_report(**{**given, **options})


def test_tables_in_every_form(write, runs, tmp_path, capsys):
    found = write()
    assert capsys.readouterr() == ("", "")
    assert found.runs == runs
    assert [table.title for table in found.tables] == ["scale"]
    assert {file.name for file in found.files} == {path.name for path in tmp_path.glob("report/*")} - {"record.json"}
    text = (tmp_path / "report/tables.md").read_text()
    assert "| no guidance | 2 | 1.600 ± 0.141 (1.2) | - |" in text
    assert "Published numbers (in parentheses) are of 50000 samples and are not comparable" in text
    latex = (tmp_path / "report/tables.tex").read_text()
    assert r"no guidance & 2 & 1.600 $\pm$ 0.141 (1.2) & 0.660 $\pm$ 0.014 & 0.600 $\pm$ 0.000 \\" in latex
    assert latex.splitlines()[1] == r"\begin{tabular}{lrrrr}"
    with open(tmp_path / "report/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["no guidance", "no guidance", "SAG 0.1", "SAG 0.3", "SAG 1.0", "SAG 9"]
    assert (rows[0]["fid"], rows[0]["commit"], rows[0]["error"]) == ("1.5", "abc", "")
    assert (rows[-1]["fid"], rows[-1]["error"]) == ("", FAILED.error)
    assert Image.open(tmp_path / "report/scale.png").size[0] > 500


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here; .ci/run installs one")
def test_the_page_works_in_a_browser_without_a_network(write, tmp_path):
    write()
    path = tmp_path / "report/report.html"
    assert path.stat().st_size < 5e6
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_context(offline=True, color_scheme="dark").new_page()
        tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        tab.goto(path.as_uri())
        assert tab.locator(".charts svg").count() == 2
        scales = tab.locator(".charts svg").first
        points = {}
        for row, fid in {"no guidance": 1.6, "SAG 0.1": 1.5, "SAG 0.3": 1.7, "SAG 1.0": 2.4}.items():
            points[row] = scales.locator("g", has=tab.locator("title", has_text=f"{row}: {fid:.3f}")).last.bounding_box()
        assert sorted(points, key=lambda row: points[row]["x"]) == ["no guidance", "SAG 0.1", "SAG 0.3", "SAG 1.0"]
        assert sorted(points, key=lambda row: -points[row]["y"]) == ["SAG 0.1", "no guidance", "SAG 0.3", "SAG 1.0"]
        text = tab.locator("body").evaluate("body => getComputedStyle(body).color")
        chart = scales.locator("text").first.evaluate("text => getComputedStyle(text).fill")
        assert chart == text == "rgb(255, 255, 255)"  # light on dark

        def first_column():
            return tab.locator("tbody tr td:first-child").all_inner_texts()

        assert first_column() == ["no guidance", "SAG 0.1", "SAG 0.3", "SAG 1.0"]
        tab.locator("th", has_text="FID").first.click()
        assert first_column() == ["SAG 0.1", "no guidance", "SAG 0.3", "SAG 1.0"]
        tab.locator("th", has_text="FID").first.click()
        assert first_column() == ["SAG 1.0", "SAG 0.3", "no guidance", "SAG 0.1"]
        shown = tab.locator(".gallery img")
        before = shown.get_attribute("src")
        assert tab.locator(".gallery output").inner_text() == "no guidance"
        tab.locator(".gallery input").fill("2")
        assert tab.locator(".gallery output").inner_text() == "SAG 0.3"
        assert shown.get_attribute("src") != before
        assert tab.locator("img.masks").count() == 1
        assert FAILED.error in tab.locator("ul.note").inner_text()
        paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    assert problems == []
    print(f"first paint after {paint:.0f} ms, {path.stat().st_size} bytes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": ["nowhere"]}, "there are no results of table 'nowhere' in .*; there are of scale"),
        ({"tables": "scale"}, "tables must be a list, got 'scale'"),
        ({"num_samples": 50000}, "no run has num_samples=50000; there are runs of 10"),
        ({"results": "nowhere.sqlite"}, r"there are no results in nowhere\.sqlite; scripts/reproduce\.py"),
    ],
)
def test_bad_input_is_one_sentence(write, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write(**options)
    assert not (tmp_path / "report").exists()


def test_runs_of_another_n_extractor_or_reference_are_tables_of_their_own(write, runs, tmp_path):
    store = Results(tmp_path / "results.sqlite")
    store.add(replace(runs[2], key="other", num_samples=20, metrics={"fid": 7.0}))
    store.add(replace(runs[0], key="base", num_samples=20, metrics={"fid": 8.0}, published={}))
    write()
    text = (tmp_path / "report/tables.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## scale (10 samples)", "## scale (20 samples)"]
    first, second = text.split("## scale (20 samples)")
    assert "| SAG 0.1 | 1 | 1.500 |" in first
    assert "| SAG 0.1 | 1 | 7.000 |" in second
    assert "| 20 samples |" in second
    assert "<h2>scale (20 samples)</h2>" in (tmp_path / "report/report.html").read_text()
    assert "% scale (10 samples)" in (tmp_path / "report/tables.tex").read_text()
    assert {path.name for path in tmp_path.glob("report/*.png")} == {"scale (10 samples).png", "scale (20 samples).png"}
    write(num_samples=10, out=tmp_path / "ten")
    assert {path.name for path in tmp_path.glob("ten/*.png")} == {"scale.png"}
    store.add(replace(runs[2], key="third", scoring={"extractor": "f/nhwc"}, metrics={"fid": 9.0}))
    store.add(replace(runs[2], key="fourth", scoring={"extractor": "e", "reference": "0123456789"}, metrics={"fid": 9.5}))
    write(num_samples=10, out=tmp_path / "more")
    titles = [line[3:] for line in (tmp_path / "more/tables.md").read_text().splitlines() if line.startswith("## ")]
    assert titles == [
        "scale (extractor e, reference unknown)",
        "scale (extractor f/nhwc, reference unknown)",
        "scale (extractor e, reference 01234567)",
    ]
    assert len(list(tmp_path.glob("more/*.png"))) == 3


def test_a_plot_is_drawn_against_the_base_of_its_own_kind(runs):
    other = [replace(run, key=run.key + "20", num_samples=20) for run in runs if run.error is None]
    elsewhere = [replace(run, key=run.key + "f", table="t", scoring={"extractor": "f"}) for run in runs[2:3]]
    found = arrange([*runs, *other, *elsewhere])
    assert [table.title for table in found] == ["scale (10 samples)", "scale (20 samples)", "t"]
    assert [base_of(table, found) for table in found] == [*found[:2], None]
    rows = arrange([replace(run, table="u") for run in runs[2:] if run.error is None] + runs)
    assert base_of(rows[0], rows) == rows[1]


def test_names_of_plots_never_collide():
    titles = ["a/b", "a_b", "A_B", "a:b", "..", "", "scale (20 samples)"]
    names = [name.removesuffix(".png") for name in report._file_names(titles).values()]
    assert names == ["a_b", "a_b-2", "A_B-3", "a_b-4", "table", "table-2", "scale (20 samples)"]


def test_a_plot_whose_title_is_no_name_of_a_file_is_not_written_over_another(write, runs, tmp_path):
    Results(tmp_path / "results.sqlite").add(replace(runs[2], table="a/b"))
    (tmp_path / "report").mkdir()
    (tmp_path / "report/a_b.png").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match=r"a_b\.png is there already"):
        write()
    assert (tmp_path / "report/a_b.png").read_bytes() == b"somebody else's"
