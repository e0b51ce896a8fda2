"""Processes share pieces of work in a folder, and outlive each other."""

import json
import os
import subprocess
import sys

import pytest

from sag import claims as lease
from sag.claims import Claims, this_process
from sag.distributed import Process
from sag.storage import LocalFolder

PIECES = [f"{number}.npz" for number in range(7)]


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(tmp_path / "run")


def claims(folder, rank=0, world=1, patience=120.0):
    return Claims(folder, "shards", Process(rank, world), patience, poll=0.01)


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_processes_share_the_pieces_and_each_is_made_once(folder, world):
    workers = {rank: claims(folder, rank, world).take(PIECES) for rank in range(world)}
    hands, made = {}, []
    while workers:
        for rank in list(workers):
            if rank in hands:
                folder.write(f"shards/{hands[rank]}", b"")
                made.append(hands.pop(rank))
            left = set(PIECES) - set(made) - set(hands.values())
            if not left and hands:
                continue  # it would wait for the others
            piece = next(workers[rank], None)
            if piece is None:
                del workers[rank]
            else:
                hands[rank] = piece
    assert sorted(made) == PIECES
    assert folder.names("shards") == set(PIECES)  # no claim is left


def test_a_slow_process_does_not_hold_the_others(folder):
    slow, fast = claims(folder, 0, 2), claims(folder, 1, 2)
    working = slow.take(PIECES)
    held = next(working)
    made = []
    for piece in fast.take(PIECES, wait=False):
        folder.write(f"shards/{piece}", b"")
        made.append(piece)
    assert sorted([held, *made]) == PIECES
    assert made[:3] == ["1.npz", "3.npz", "5.npz"]  # its own come first


def test_the_piece_of_a_dead_process_is_taken_at_once(folder, tmp_path):
    program = (
        "import os, sys; from sag.claims import Claims; from sag.distributed import *; from sag.storage import LocalFolder;"
        f"taken = Claims(LocalFolder(__import__('pathlib').Path({str(folder.path)!r})), 'shards', Process()).take(['0.npz']);"
        "next(taken); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program])
    assert folder.names("shards") == {"0.npz.claim"}
    assert next(claims(folder).take(PIECES[:1])) == "0.npz"


def test_the_piece_of_a_silent_machine_is_taken_after_a_while_whatever_its_clock_says(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lease.time, "time", lambda: pytest.fail("clocks of machines are not compared"))
    claim = {**this_process(), "machine": "another", "rank": 1, "beat": 0}
    folder.write("shards/0.npz.claim", json.dumps(claim).encode())
    waiting = claims(folder, patience=60.0)
    assert next(waiting.take(PIECES[:1], wait=False), None) is None
    now[0] += 50
    folder.write("shards/0.npz.claim", json.dumps({**claim, "beat": 1}).encode())  # it lives
    assert next(waiting.take(PIECES[:1], wait=False), None) is None
    now[0] += 50
    assert next(waiting.take(PIECES[:1], wait=False), None) is None
    now[0] += 11
    assert next(waiting.take(PIECES[:1], wait=False), None) == "0.npz"


def test_a_claim_says_that_its_holder_lives(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    mine = claims(folder, patience=60.0)
    taken = mine.take(PIECES)
    next(taken)
    before = folder.read("shards/0.npz.claim")
    mine.beat()
    assert folder.read("shards/0.npz.claim") == before
    now[0] += 7
    mine.beat()
    assert folder.read("shards/0.npz.claim") != before
    assert json.loads(before)["pid"] == os.getpid()
    taken.close()
    assert folder.names("shards") == set()


def test_a_damaged_claim_is_void_after_a_while(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    folder.write("shards/0.npz.claim", b"")
    waiting = claims(folder, patience=60.0)
    assert next(waiting.take(PIECES[:1], wait=False), None) is None
    now[0] += 61
    assert next(waiting.take(PIECES[:1], wait=False), None) == "0.npz"


def test_pieces_that_were_joined_and_removed_are_not_made_again(folder):
    assert list(claims(folder).take(PIECES, finished=lambda: True)) == []
