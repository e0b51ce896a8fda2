"""Who a process is, and that any set of processes does all the work, whoever of them dies."""

import os

import pytest

from sag import distributed
from sag.distributed import _VARIABLES, Process, set_meeting_place


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in {name for names in _VARIABLES for name in names} | {name for name in os.environ if name.startswith("SLURM_")}:
        monkeypatch.delenv(name, raising=False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what a test sets is removed
        monkeypatch.delenv(name)


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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a whole number of 0 or more, as a launcher sets it, got 'x'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be a whole number .* got '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE must be a whole number .* got '2.0'"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK must be a whole number .* got ''"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK must be a whole number .* got 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0 contradict each other"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but RANK is not; set both as a launcher does, or neither"),
        ({"RANK": "1"}, "RANK is set, but WORLD_SIZE is not"),
        ({"PMI_RANK": "1"}, "PMI_RANK is set, but PMI_SIZE is not"),
        ({"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID=4 and SLURM_STEP_NUM_TASKS=4 contradict each other"),
        ({"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID must be a whole number"),
    ],
    ids=str,
)
def test_impossible_variables_are_named(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Process.current()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Process()),  # a batch script
        ({"SLURM_PROCID": "0"}, Process()),  # without -n
        ({"SLURM_NTASKS": "4"}, Process()),  # salloc
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
            Process(),  # salloc with use_interactive_step
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
            Process(3, 4, 1),  # srun -n 4 in a job of 8
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Process(1, 2),
        ),  # torchrun in a step
    ],
)
def test_a_process_in_a_job_of_slurm_has_the_world_of_its_step(monkeypatch, variables, expected):
    for name, value in {"SLURM_JOB_ID": "7", **variables}.items():
        monkeypatch.setenv(name, value)
    assert Process.current() == expected


def in_step(monkeypatch, nodes, count="2", job="1234", step="0"):
    step_of = {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_NUM_NODES": count, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": step}
    for name, value in {"SLURM_JOB_ID": job, "SLURM_PROCID": "0", **step_of}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[001-004,7]", "gpu001"),
        ("gpu[03,7-9]-a.example,other", "gpu03-a.example"),
        ("rack[0-1]node[10-13],x[1-2]", "rack0node10"),
    ],
)
def test_processes_of_a_step_meet_at_its_first_host(monkeypatch, nodes, first):
    asked = []
    monkeypatch.setattr(distributed.socket, "getaddrinfo", lambda name, port: asked.append(name))
    in_step(monkeypatch, nodes)
    set_meeting_place(Process(1, 2))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (first, str(10000 + 31 * 1234 % 20000))
    assert asked == [first]


def test_the_meeting_place_is_local_on_one_host_and_differs_between_steps(monkeypatch):
    ports = set()
    for job, step in (("1", "0"), ("1", "1"), ("2", "0"), ("2", "5")):
        in_step(monkeypatch, "nowhere", "1", job, step)
        set_meeting_place(Process(0, 2))
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
        ports.add(os.environ.pop("MASTER_PORT"))
        del os.environ["MASTER_ADDR"]
    assert len(ports) == 4


def test_scontrol_knows_hosts_that_have_another_name(monkeypatch, tmp_path):
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\necho "NodeName=$3 Arch=x86_64 NodeAddr=10.1.2.3 NodeHostName=h"\n')
    program.chmod(0o755)
    in_step(monkeypatch, "node1.invalid,node2.invalid")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    set_meeting_place(Process(0, 2))
    assert os.environ["MASTER_ADDR"] == "10.1.2.3"


def test_what_is_set_stays_and_what_cannot_be_found_is_said(monkeypatch):
    with pytest.raises(ValueError, match="2 processes need a place to meet: set MASTER_ADDR and MASTER_PORT for all of them"):
        set_meeting_place(Process(0, 2))
    in_step(monkeypatch, "node1.invalid")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"first node of this step \(node1\.invalid\) has no address here; set MASTER_ADDR"):
        set_meeting_place(Process(0, 2))
    in_step(monkeypatch, "", "1")
    monkeypatch.setenv("MASTER_ADDR", "own")
    set_meeting_place(Process(0, 2))
    assert os.environ["MASTER_ADDR"] == "own"
    assert os.environ["MASTER_PORT"].isdecimal()
