"""Tables of scored runs: what stands together, means and spreads, published numbers, and the forms of a table."""

import csv
import io
from dataclasses import replace

import pytest
from helpers import ROOT
from PIL import Image

from evaluations.study.pictures import draw_table
from evaluations.study.results import Results, Run
from evaluations.study.tables import arrange, as_csv, differences, latex, markdown


def runs(*rows, num_samples=10, extractor="e", **changes):
    facts = {"settings": {}, "scoring": {"extractor": extractor}, **changes}
    return [
        Run(f"{row}{seed}{num_samples}", "main", row, seed, num_samples, metrics={"fid": fid}, **facts)
        for row, fids in rows
        for seed, fid in enumerate(fids)
    ]


def test_a_table_has_means_spreads_and_published_numbers_only_where_they_compare():
    published = {"values": {"fid": 2.0}, "num_samples": 10, "extractor": "e"}
    (table,) = arrange(runs(("a", [1.0, 2.0]), ("b", [3.0]), published=published))
    text = markdown(table)
    assert text.splitlines()[0] == "| 10 samples | seeds | FID | sFID | IS | precision | recall | agreement |"
    assert "| a | 2 | 1.500 ± 0.707 (2, -0.500) | - |" in text
    assert "| b | 1 | 3.000 (2, +1.000) | - |" in text
    (table,) = arrange(runs(("a", [1.0]), published={**published, "num_samples": 50000}))
    text = markdown(table)
    assert "| a | 1 | 1.000 (2) |" in text
    assert "are of 50000 samples and are not comparable with these runs" in text
    failed = Run("x", "main", "c", 0, 10, {}, error="it failed")
    (table,) = arrange([*runs(("a", [1.0])), failed])
    assert list(table.mean.index) == ["a"]


@pytest.mark.parametrize(
    ("changes", "titles"),
    [
        ({"num_samples": 20}, ["main (10 samples)", "main (20 samples)"]),
        ({"extractor": "f"}, ["main (extractor e)", "main (extractor f)"]),
    ],
)
def test_runs_that_do_not_compare_are_tables_of_their_own(changes, titles):
    found = arrange(runs(("a", [1.0])) + runs(("b", [1.0]), **changes))
    assert [table.title for table in found] == titles


def test_a_table_that_is_called_like_a_part_of_another_stays_apart():
    (run,) = runs(("a", [1.0]))
    mixed = [run, replace(run, num_samples=20), replace(run, table="main (20 samples)")]
    assert [table.title for table in arrange(mixed)] == ["main (10 samples)", "main (20 samples)", "main (20 samples)'"]


def test_the_latest_run_of_a_row_says_what_is_published_even_of_metrics_that_were_not_measured():
    first, second = runs(("a", [1.0, 2.0]), published={"values": {"fid": 9.0}, "num_samples": 10, "extractor": "e"})
    (table,) = arrange([first, replace(second, published={**first.published, "values": {"fid": 1.0, "is": 5.0}})])
    assert "| a | 2 | 1.500 ± 0.707 (1, +0.500) | - | - (5) | - |" in markdown(table)


def test_rows_stand_in_the_order_of_their_table_and_others_behind():
    names = ["other", "SAG 0.5", "SAG 0.05", "no guidance", "another"]
    found = [replace(run, table="fashion_scale") for run in runs(*((name, [1.0]) for name in names))]
    (table,) = arrange(found)
    assert list(table.mean.index) == ["no guidance", "SAG 0.05", "SAG 0.5", "other", "another"]


def test_what_a_technique_adds_is_told_seed_by_seed():
    """The rows rise with the seed by as much as they differ; what SAG adds does not. A row of other settings has no pair."""
    sag, cfg = {"scale": 0.5}, {"scale": 1.0}
    rows = [
        ("none", {}, 10.0), ("SAG", {"sag": sag}, 9.0), ("CFG", {"cfg": cfg}, 5.0), ("both", {"sag": sag, "cfg": cfg}, 5.5),
        ("other", {"sag": {"scale": 1.0}, "pag": {"scale": 1.0}}, 0.0),
    ]  # fmt: skip
    found = [
        Run(
            f"{row}{seed}",
            "t",
            row,
            seed,
            10,
            {"guidance": guidance, "seed": seed},
            {"extractor": "e"},
            {"fid": fid + 10 * seed},
        )
        for seed in (0, 1)
        for row, guidance, fid in rows
    ]
    (table,) = arrange(found)
    added = differences(table)
    assert dict(zip(added.mean.index, zip(added.mean["fid"], added.spread["fid"], strict=True), strict=True)) == {
        "SAG minus none": (-1.0, 0.0),
        "CFG minus none": (-5.0, 0.0),
        "both minus CFG": (0.5, 0.0),
        "both minus SAG": (-3.5, 0.0),
    }
    text = markdown(table)
    assert "| SAG | 2 | 14.000 ± 7.071 |" in text
    assert "| SAG minus none | 2 | -1.000 ± 0.000 |" in text.split("Seed by seed:")[1]
    assert "Seed by seed" not in markdown(*arrange(found[:5]))  # one seed has no spread


def test_a_plot_has_a_panel_for_each_metric_that_was_measured(tmp_path):
    found = runs(("no guidance", [1.0, 2.0]), ("b", [3.0]))
    more = [replace(run, metrics={"fid": 1.0, "precision": 0.5, "recall": 0.5}) for run in found]
    widths = []
    for some in (found, more):
        (table,) = arrange(some)
        draw_table(table, table, tmp_path / "plot.png")
        widths.append(Image.open(tmp_path / "plot.png").size[0])
    assert 2 * widths[0] < widths[1]


def test_a_table_for_latex_has_no_signs_that_latex_reads():
    name = "a_b & 50% of #1, " + "long " * 30
    (table,) = arrange(runs((name, [1.0, 2.0])))
    escaped = name.replace("_", r"\_").replace("&", r"\&").replace("%", r"\%").replace("#", r"\#")
    assert latex(table).splitlines() == [
        "% main", r"\begin{tabular}{lrr}", r"\toprule", r"10 samples & seeds & FID \\", r"\midrule",
        rf"{escaped} & 2 & 1.500 $\pm$ 0.707 \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_comma_separated_values_are_those_of_the_runs():
    (run,) = runs(("a, b", [1.23456789]))
    seeds = [0, 2**64 - 1, -(2**70)]
    found = [replace(run, seed=seed) for seed in seeds] + [replace(run, metrics={"is": 2.0}, seconds=12345.678)]
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [int(row["seed"]) for row in rows] == [*seeds, 0]
    assert {row["row"] for row in rows} == {"a, b"}
    assert [(row["fid"], row["is"], row["seconds"]) for row in rows[2:]] == [("1.23457", "", ""), ("", "2", "12345.678")]


def test_the_tables_of_the_study_are_those_of_its_results():
    written = "".join(markdown(table) for table in arrange(Results(ROOT / "docs/study/results.sqlite").runs())).splitlines()
    text = (ROOT / "docs/study.md").read_text()
    told = [line for part in text.split("| 10000 samples |")[1:] for line in part.split("\n\n")[0].splitlines()[2:]]
    assert len(told) > 50
    assert set(told) <= set(written)
