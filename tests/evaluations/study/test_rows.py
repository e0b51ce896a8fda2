"""Rows: composed, named by a key that does not change, sampled and scored once."""

import pytest
from helpers import GOLDEN, ROOT
from omegaconf import OmegaConf

from evaluations.study.results import Results
from evaluations.study.rows import compose_row, table_rows
from sag.build.groups import choices, load_config
from sag.distributed import Process

SMALL = ["num_samples=4", "batch_size=4", "sampler=ddim", "sampler.steps=ddim2"]
SCORING = [
    "extractor=module",
    "extractor.network._target_=helpers.TinyNetwork",
    f"reference={GOLDEN / 'fashion_mnist_200.npz'}",
]
STUDY = [name for name in choices("table") if name.startswith("fashion_")]


@pytest.mark.parametrize("table", [STUDY[0], *(pytest.param(name, marks=pytest.mark.slow) for name in STUDY[1:])])
def test_rows_of_the_study_have_the_keys_of_its_stored_results(table):
    """Or else the study would be sampled again by whoever adds a row to it."""
    runs = Results(ROOT / "docs/study/results.sqlite").runs()
    stored = {run.row: run.key for run in runs if (run.table, run.seed) == (table, 0)}
    assert {row.name: row.key for row in table_rows(table, seeds=[0])} == stored


def test_a_row_is_sampled_and_scored_once_and_prints_nothing(tmp_path, capsys):
    row = compose_row("t", "SAG", ["guidance=[sag]", *SMALL, "seed=1", "seed=2"], SCORING)
    run = row.run(tmp_path / "row", "cpu")
    assert (run.table, run.row, run.seed, run.num_samples, run.key) == ("t", "SAG", 2, 4, row.key)
    assert run.settings["guidance"]["sag"]["scale"] == row.cfg.guidance.sag.scale
    assert set(run.metrics) == {"fid", "sfid", "is", "precision", "recall"}
    assert run.record["versions"].keys() >= {"sag", "torch"}
    assert run.folder == str(tmp_path / "row")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "row").iterdir()}
    again = row.run(tmp_path / "row", "cpu")
    assert (again.metrics, again.seconds) == (run.metrics, run.seconds)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "row").iterdir()} == times
    assert row.run(tmp_path / "row", "cpu", process=Process(1, 2, 1)) is None  # not the main process
    assert capsys.readouterr() == ("", "")


def test_the_seconds_of_a_shorter_run_are_not_those_of_a_row(tmp_path):
    longer = compose_row("t", "r", SMALL, SCORING)
    shorter = compose_row("t", "r", [*SMALL, "num_samples=2"], SCORING)
    longer.run(tmp_path, "cpu")
    assert shorter.run(tmp_path, "cpu").seconds is not None
    assert longer.run(tmp_path, "cpu").seconds is None  # the record is that of the shorter one


def test_what_determines_the_scores_is_in_the_key():
    row = compose_row("t", "SAG", ["guidance=[sag]"], SCORING)
    assert compose_row("other", "name", ["guidance=[sag]", "device=cpu", "out=x"], SCORING[::-1]).key == row.key
    for overrides, scoring in (
        (["guidance=[sag]", "seed=5"], SCORING),
        (["guidance=[cfg]"], SCORING),
        (["guidance=[sag]"], []),
    ):
        assert compose_row("t", "SAG", overrides, scoring).key != row.key


def test_rows_come_with_all_rows_of_the_first_seed_first():
    table = {"name": "t", "seeds": [3, 4], "num_samples": 8, "common": ["batch_size=2"], "scoring": ["is_splits=1"], "rows": {}}
    table["rows"] = {"a": ["guidance=[]"], "b": ["guidance=[sag]", "batch_size=4"]}
    rows = table_rows(table)
    assert [(row.name, row.cfg.seed, row.cfg.batch_size) for row in rows] == [
        ("a", 3, 2),
        ("b", 3, 4),
        ("a", 4, 2),
        ("b", 4, 4),
    ]
    assert all((row.table, row.cfg.num_samples, row.scoring) == ("t", 8, ["is_splits=1"]) for row in rows)
    assert [row.cfg.batch_size for row in table_rows(table, ["b"], num_samples=1)] == [4, 4]
    assert [row.cfg.batch_size for row in table_rows(table, seeds=[0], common=["batch_size=1"])] == [1, 1]


def test_published_numbers_come_with_a_row_or_with_the_experiment_that_it_is():
    (baseline,) = table_rows("baselines", ["imagenet128"])  # is that of table=classifier
    assert (baseline.cfg.published["source"], baseline.cfg.published["values"]["fid"]) == ("arXiv:2210.00939", 5.91)
    table = OmegaConf.to_container(load_config("table", "iddpm"), resolve=True)
    table["rows"]["own"] = ["guidance=[sag]"]
    (published, own) = table_rows(table, ["iddpm64_sag", "own"], num_samples=10)
    assert published.cfg.published == {**table["published"], "values": {"fid": 18.0}}
    assert (published.cfg.published.num_samples, published.cfg.num_samples) == (50000, 10)
    assert own.cfg.published is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "unknown table 'nowhere'; expected one of ablation_layer, "),
        (("fashion", ["nowhere"]), "table fashion has no row 'nowhere'; it has no guidance, SAG, "),
        (("fashion", []), r"rows and seeds must not be empty, got \[\] and \[0\]"),
        (("fashion", None, []), r"rows and seeds must not be empty, got \['no guidance', .*\] and \[\]"),
        (("fashion", "SAG"), "names must be a list, got 'SAG'"),
        (("fashion", ["SAG"], 0), "seeds must be a list, got 0"),
        (("fashion", ["SAG"], ["x"]), "seed takes a whole number, got 'x'"),
        (("fashion", ["SAG"], [0], None, ["guidance.sag.scales=1"]), "unknown config key 'guidance.sag.scales'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        table_rows(*arguments)


def test_a_row_without_sag_has_nothing_to_look_at():
    with pytest.raises(ValueError, match="there is nothing to see without SAG"):
        compose_row("t", "none", ["guidance=[]", *SMALL]).moments("cpu")
