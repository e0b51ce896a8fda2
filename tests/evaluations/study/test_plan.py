"""What rows cost: counted, and in proportion."""

import pytest

from evaluations.study.plan import plan
from evaluations.study.rows import compose_row


def test_costs_are_in_proportion_to_samples_passes_and_pixels():
    changes = {
        "plain": [],
        "many": ["num_samples=400"],
        "cfg": ["guidance=[cfg]"],
        "wide": ["size=[32,64]", "guidance=[]"],
        "deep": ["bits=16"],
    }
    small = ["batch_size=4", "num_samples=100", "sampler.steps=10", "guidance=[]"]
    rows = [compose_row("t", name, [*small, *overrides]) for name, overrides in changes.items()]
    planned = plan(rows, "cpu")
    plain, many, cfg, wide, deep = planned.costs
    assert (plain.passes, cfg.passes, wide.passes) == (10, 20, 10)
    assert [round(cost.hours / plain.hours, 6) for cost in (many, cfg, deep)] == [4, 2, 1]
    assert wide.hours > 1.9 * plain.hours
    assert plain.gigabytes == 2 * 100 * 3 * 32 * 32 / 1e9
    assert [cost.gigabytes / plain.gigabytes for cost in (many, wide, deep)] == [4, 2, 2]
    assert planned.hours == sum(cost.hours for cost in planned.costs)
    assert planned.device.startswith("cpu (")
    table = planned.table()
    assert list(table.columns) == ["row", "seed", "samples", "passes", "hours", "GB", "published"]
    assert list(table["row"]) == list(changes)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="there are no rows to plan"):
        plan([])
