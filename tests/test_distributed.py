"""Who a process is, and that any set of processes does all the work."""

import pytest

from sag.distributed import _VARIABLES, Process


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for names in _VARIABLES:
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("names", _VARIABLES, ids=lambda names: names[0])
def test_launchers_say_who_a_process_is(monkeypatch, names):
    assert Process.current() == Process(0, 1, 0)
    for name, value in zip(names, "351", strict=True):
        monkeypatch.setenv(name, value)
    assert Process.current() == Process(3, 5, 1)
    assert not Process.current().main


def test_contradictions_are_named(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=2 and WORLD_SIZE=2 contradict each other"):
        Process.current()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_main_process_can_do_everything_and_the_others_share_it(world):
    shares = [list(Process(rank, world).shares(7)) for rank in range(world)]
    assert sorted(shares[0]) == list(range(7))
    own = [share[: len(range(rank, 7, world))] for rank, share in enumerate(shares)]
    assert sorted(piece for share in own for piece in share) == list(range(7))
    assert all(share == mine for share, mine in zip(shares[1:], own[1:], strict=True))
