"""Experiments: the rows of papers' tables, known to Hydra as far as they are asked for."""

import pytest
from hydra.core.config_store import ConfigStore

from sag.build.messages import check_choices
from sag.build.tables import experiments, published_numbers, row_settings

TABLE = {"published": {"source": "arXiv"}, "rows": {"plain": ["seed=1"], "published": {"settings": ["seed=2"], "fid": 3.5}}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("lsun_cat", {"lsun_cat"}),
        ("'lsun_cat'", {"lsun_cat"}),
        ("lsun_cat,lsun_horse", {"lsun_cat", "lsun_horse"}),
        ("[lsun_cat, nothing]", {"lsun_cat"}),
        ("glob(lsun*)", set(experiments())),
    ],
)
def test_those_that_an_override_may_mean_are_known(value, expected):
    store = ConfigStore.instance()
    store.repo.pop("experiment", None)
    check_choices(["seed=1", f"experiment={value}"])
    assert {name.removesuffix(".yaml") for name in store.list("experiment")} == expected
    del store.repo["experiment"]


def test_a_row_is_a_list_of_settings_or_has_published_numbers_beside_them():
    assert [row_settings(TABLE, row) for row in TABLE["rows"]] == [["seed=1"], ["seed=2"]]
    assert [published_numbers(TABLE, row) for row in TABLE["rows"]] == [None, {"source": "arXiv", "values": {"fid": 3.5}}]
