"""Sampling by many processes, and what becomes of it when they die: always the same bytes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import ROOT, Zygote, allowed

from sag.claims import this_process
from sag.sampling import shards as shards_of_runs
from scripts import status

RUN = ["num_samples=12", "batch_size=2", "sampler.steps=2", "device=cpu"]
TARGET = "samples_12x32x32x3.npz"
FIRST, THIRD, FOURTH = "00000000-00000001.npz", "00000004-00000005.npz", "00000006-00000007.npz"  # shards
REQUEUE = 75
ROOT_MOUNTS = pytest.mark.skipif(
    not allowed("unshare", "--mount", "true"), reason="mounts a small disk, which this user may not (root may; .ci/run does)"
)
ROOT_HOSTS = pytest.mark.skipif(
    not allowed("unshare", "--mount", "--net", "ip", "link"),
    reason="makes network namespaces with ip, which this user may not or which is not there (root may; .ci/run does)",
)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    found = Zygote(tmp_path_factory.mktemp("zygote"), RUN)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def own_logs(zygote, tmp_path):
    zygote.folder = tmp_path


@pytest.fixture(scope="module")
def expected(zygote, tmp_path_factory):
    """The bytes that one undisturbed process writes."""
    zygote.folder = tmp_path_factory.mktemp("expected")
    out = zygote.folder / "out"
    assert zygote.wait(zygote.start(f"out={out}")) == 0, zygote.logs()
    return (out / TARGET).read_bytes()


def shards(out):
    return sorted(out.glob("shards/*.npz"))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def finished(out, expected):
    return (out / TARGET).read_bytes() == expected and sorted(p.name for p in out.iterdir()) == [
        "config.yaml",
        "grid.png",
        "record.json",
        TARGET,
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(zygote, expected, tmp_path, world):
    out = tmp_path / "out"
    pids = [zygote.start(f"out={out}", rank=rank, world=world) for rank in range(world)]
    assert [zygote.wait(pid) for pid in pids] == [0] * world, zygote.logs()
    assert finished(out, expected)
    assert 1 <= json.loads((out / "record.json").read_text())["processes"] <= world
    assert f"rank {world - 1} of {world} on " in zygote.logs()


def test_two_jobs_on_one_folder_work_together(zygote, expected, tmp_path):
    out = tmp_path / "out"
    pids = [zygote.start(f"out={out}") for _ in range(2)]
    assert [zygote.wait(pid) for pid in pids] == [0, 0], zygote.logs()
    assert finished(out, expected)


def test_hosts_that_count_differently_or_reach_no_master_work_together(zygote, expected, tmp_path):
    out, unreachable = tmp_path / "out", {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
    pids = [zygote.start(f"out={out}", rank=rank, world=world, **unreachable) for rank, world in ((1, 2), (4, 5), (0, 1))]
    assert [zygote.wait(pid) for pid in pids] == [0, 0, 0], zygote.logs()
    assert finished(out, expected)


def test_a_killed_rank_takes_no_work_with_it(zygote, expected, tmp_path):
    """Rank 1 makes the second shard, and stands still in the middle of its next one until all others are made."""
    out = tmp_path / "out"
    still = zygote.start(f"out={out}", rank=1, world=2, die_writing=[FOURTH, 1, signal.SIGSTOP])
    until(lambda: list(out.rglob(f".{FOURTH}.*.part")))
    alive = zygote.start(f"out={out}", rank=0, world=2)
    until(lambda: len(shards(out)) == 5)
    assert (out / f"shards/{FOURTH}.claim").exists()
    zygote.kill(still)
    assert zygote.wait(alive) == 0, zygote.logs()
    assert finished(out, expected)
    assert json.loads((out / "record.json").read_text())["processes"] == 2


def test_when_all_ranks_are_killed_the_same_command_continues(zygote, expected, tmp_path):
    out = tmp_path / "out"
    pids = [zygote.start(f"out={out}", rank=rank, world=2) for rank in range(2)]
    until(lambda: len(shards(out)) >= 2)
    for pid in pids:
        zygote.kill(pid)
    kept = {path: path.stat().st_mtime_ns for path in shards(out)}
    assert kept
    pid = zygote.start(f"out={out}", rank=0, world=1)
    until(lambda: len(shards(out)) > len(kept) or (out / TARGET).exists())
    assert all(path.stat().st_mtime_ns == kept[path] for path in shards(out) if path in kept)
    assert zygote.wait(pid) == 0, zygote.logs()
    assert finished(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warning_signal_finishes_the_batch_and_asks_for_a_requeue(zygote, expected, tmp_path, number):
    out = tmp_path / "out"
    pid = zygote.start(f"out={out}")
    until(lambda: shards(out))
    before = len(shards(out))
    assert zygote.kill(pid, number) == REQUEUE
    assert before <= len(shards(out)) <= before + 2
    assert not list(out.glob("shards/*.claim"))
    assert f"{number.name}: the shard in hand is written; the same command continues" in zygote.logs()
    assert zygote.wait(zygote.start(f"out={out}")) == 0
    assert finished(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "writes"),
    [
        (THIRD, 1),
        (TARGET, 2),
        (TARGET, 5),
        (TARGET, 9),
        ("grid.png", 2),
        ("record.json", 1),
        ("config.yaml", 1),
    ],
)
def test_a_kill_in_the_middle_of_writing_a_file_leaves_nothing_half(zygote, expected, tmp_path, name, writes):
    out = tmp_path / "out"
    assert zygote.wait(zygote.start(f"out={out}", die_writing=[name, writes])) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in shards(out)}
    assert len(kept) == {THIRD: 2, "config.yaml": 0}.get(name, 6)
    assert list(out.rglob(f".{name}.*.part"))
    assert not (out / name).exists()
    assert zygote.wait(zygote.start(f"out={out}")) == 0, zygote.logs()
    assert finished(out, expected)


def interrupted(zygote, out):
    """A run that was stopped after its second shard."""
    pid = zygote.start(f"out={out}")
    until(lambda: len(shards(out)) >= 2)
    zygote.kill(pid)
    return shards(out)[0]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_shard_is_found_and_made_again(zygote, expected, tmp_path, damage):
    out = tmp_path / "out"
    shard = interrupted(zygote, out)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    assert zygote.wait(zygote.start(f"out={out}")) == 0, zygote.logs()
    assert f"warning   shards/{FIRST} is damaged (" in zygote.logs()
    assert finished(out, expected)


@pytest.mark.slow
def test_leftovers_of_a_killed_writer_do_no_harm(zygote, expected, tmp_path):
    out = tmp_path / "out"
    interrupted(zygote, out)
    (out / f"shards/.{THIRD}.host.123.part").write_bytes(b"half")
    (out / f".{TARGET}.host.123.part").write_bytes(b"half")
    (out / "shards/00000006-00000007.npz.claim").write_bytes(b"")
    (out / "shards/00000006-00000007.npz.claim").unlink()
    assert zygote.wait(zygote.start(f"out={out}")) == 0, zygote.logs()
    assert finished(out, expected)


@pytest.mark.slow
def test_the_status_of_a_run(zygote, run_script, tmp_path):
    def told(out):
        return run_script(status.main, "status", status.StatusConfig, f"out={out}")

    out = tmp_path / "out"
    interrupted(zygote, out)
    done = len(shards(out))
    for claim in out.glob("shards/*.claim"):
        claim.unlink()
    dead, alive = ({"host": "h", "pid": os.getpid(), "beat": 0, **this_process(), **start} for start in ({"started": "1"}, {}))
    for number, claim in enumerate((dead, alive, dead)):
        (out / f"shards/0000002{number}-0000002{number}.npz.claim").write_text(json.dumps(claim))
    lines = told(out).splitlines()
    assert lines[0] == f"done      {2 * done} of 12 samples, in {done} shards"
    assert lines[1] == f"host      {socket.gethostname()}: {2 * done} samples"
    assert lines[2].startswith("speed     ")
    assert " left" in lines[2]
    if done < 6:
        assert lines[-1] == f"missing   samples {2 * done}-11"
    assert lines[3] == "at work   1 shards are claimed, 2 more by processes that have ended"
    assert zygote.wait(zygote.start(f"out={out}")) == 0
    assert told(out) == f"finished  {out}/{TARGET}\n"
    with pytest.raises(SystemExit, match=r"holds no config\.yaml; give the folder of a run of scripts/sample\.py as out="):
        told(tmp_path / "nowhere")
    assert [status.ranges([]), status.ranges([0, 1, 2, 5, 7, 8])] == ["", "0-2, 5, 7-8"]
    assert [status.duration(7384), status.duration(95)] == ["2 h 03 min", "1 min 35 s"]


@pytest.mark.slow
def test_the_status_of_a_run_that_is_packed_meanwhile(zygote, run_script, tmp_path, monkeypatch):
    out, read = tmp_path / "out", shards_of_runs.read_shard
    interrupted(zygote, out)

    def packed_first(*arguments):
        assert zygote.wait(zygote.start(f"out={out}")) == 0, zygote.logs()
        return read(*arguments)

    monkeypatch.setattr(shards_of_runs, "read_shard", packed_first)
    assert run_script(status.main, "status", status.StatusConfig, f"out={out}") == f"finished  {out}/{TARGET}\n"


@pytest.mark.slow
def test_a_shard_of_another_run_is_refused_and_kept(zygote, tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        pid = zygote.start(f"out={tmp_path / name}", f"seed={seed}")
        until(lambda name=name: len(shards(tmp_path / name)) >= 2)
        zygote.kill(pid)
    foreign = (tmp_path / f"two/shards/{FIRST}").read_bytes()
    (tmp_path / f"one/shards/{FIRST}").write_bytes(foreign)
    assert zygote.wait(zygote.start(f"out={tmp_path / 'one'}")) == 1
    assert f"shards/{FIRST} is a shard of a run with other settings; remove it, or give another out" in zygote.logs()
    assert (tmp_path / f"one/shards/{FIRST}").read_bytes() == foreign


@pytest.mark.slow
@ROOT_MOUNTS
def test_a_full_disk_is_said_and_space_continues_the_run(zygote, expected, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        assert zygote.wait(zygote.start(f"out={disk / 'out'}")) == 1
        assert "No space left on device" in zygote.logs()
        assert not (disk / "out" / TARGET).exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert zygote.wait(zygote.start(f"out={disk / 'out'}")) == 0, zygote.logs()
        assert (disk / "out" / TARGET).read_bytes() == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_other_settings_at_the_same_time_are_refused(zygote, tmp_path):
    out = tmp_path / "out"
    pids = [zygote.start(f"out={out}", f"seed={seed}") for seed in (0, 1)]
    codes = sorted(zygote.wait(pid) for pid in pids)
    assert codes == [0, 1], zygote.logs()
    assert "holds results of other settings; give another out, or remove it: seed (" in zygote.logs()


@pytest.mark.slow
def test_launchers_write_the_same_bytes(expected, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for launcher in (["torchrun", "--nproc_per_node=2"], ["mpiexec", "-n", "2", sys.executable]):
        program = os.path.join(os.path.dirname(sys.executable), launcher[0])
        out = tmp_path / launcher[0]
        command = [program, *launcher[1:], str(ROOT / "scripts/sample.py"), *RUN, f"out={out}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "rank 0 of 2 on" in done.stdout
        assert "rank 1 of 2 on" in done.stdout
        assert finished(out, expected)


@pytest.mark.slow
def test_submitit_runs_every_point_with_several_tasks(expected, tmp_path):
    """The launcher of SLURM's jobs, with its stand-in on this machine."""
    command = [sys.executable, str(ROOT / "scripts/sample.py"), "-m", "hydra/launcher=submitit_local"]
    points = ["hydra.launcher.tasks_per_node=2", f"out={tmp_path}/out/${{seed}}", "seed=0,1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *RUN, *points], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path / "out/0", expected)
    assert (tmp_path / "out/1" / TARGET).read_bytes() != expected
    logs = "".join(path.read_text() for path in tmp_path.glob("outputs/.multirun/.submitit/*/*.out"))
    assert logs.count("rank 1 of 2 on") == 2


class Hosts:
    """Two hosts on this machine: network namespaces, joined by a pair of virtual cables."""

    def __enter__(self):
        commands = [
            "ip netns add sag1", "ip netns add sag2", "ip link add sag1 netns sag1 type veth peer name sag2 netns sag2",
            *(f"ip -n sag{n} addr add 10.99.0.{n}/24 dev sag{n}" for n in (1, 2)),
            *(f"ip -n sag{n} link set {device} up" for n in (1, 2) for device in (f"sag{n}", "lo")),
        ]  # fmt: skip
        self.processes = []
        for command in commands:
            subprocess.run(command.split(), check=True)
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()
        for n in (1, 2):
            subprocess.run(["ip", "netns", "del", f"sag{n}"], check=True)

    def start(self, n, log, *arguments):
        program = os.path.join(os.path.dirname(sys.executable), "torchrun")
        master = ["--nnodes=2", f"--node_rank={n - 1}", "--nproc_per_node=1", "--master_addr=10.99.0.1", "--master_port=29511"]
        command = ["ip", "netns", "exec", f"sag{n}", program, *master, str(ROOT / "scripts/sample.py"), *RUN, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(log, "w") as file:
            self.processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
        return self.processes[-1]


@ROOT_HOSTS
@pytest.mark.slow
def test_two_hosts_write_the_same_bytes(expected, tmp_path):
    with Hosts() as hosts:
        pair = [hosts.start(n, tmp_path / f"log{n}", f"out={tmp_path / 'out'}") for n in (1, 2)]
        assert [process.wait(300) for process in pair] == [0, 0], (tmp_path / "log1").read_text()
    assert finished(tmp_path / "out", expected)
    for n in (1, 2):
        assert f"rank {n - 1} of 2 on" in (tmp_path / f"log{n}").read_text()


@ROOT_HOSTS
@pytest.mark.slow
def test_a_host_that_is_cut_off_harms_nothing(zygote, expected, tmp_path):
    out = tmp_path / "out"
    with Hosts() as hosts:
        for n in (1, 2):
            hosts.start(n, tmp_path / f"log{n}", f"out={out}")
        until(lambda: shards(out) or (out / TARGET).exists(), 300)
        subprocess.run(["ip", "-n", "sag2", "link", "set", "sag2", "down"], check=True)
        until(lambda: (out / TARGET).exists() and finished(out, expected), 300)


@pytest.mark.slow
def test_soak_of_100_random_kills(zygote, tmp_path, capsys):
    """Three processes at a time, one of them killed at a random moment, and replaced; then the bytes are compared."""
    random.seed(0)
    run = ["num_samples=400"]
    assert zygote.wait(zygote.start(f"out={tmp_path / 'whole'}", *run)) == 0
    out, target, kills, rounds = tmp_path / "out", "samples_400x32x32x3.npz", 0, 0
    expected = (tmp_path / "whole" / target).read_bytes()
    while kills < 100:
        rounds += 1
        pids = [zygote.start(f"out={out}", *run, rank=rank, world=3) for rank in range(3)]
        while kills < 100 and not (out / target).exists():
            time.sleep(random.expovariate(2.0))
            victim = random.randrange(3)
            kills += zygote.kill(pids[victim]) == -signal.SIGKILL
            pids[victim] = zygote.start(f"out={out}", *run, rank=victim, world=3)
        codes = [zygote.wait(pid) for pid in pids]
        assert codes == [0, 0, 0], zygote.logs()[-3000:]
        assert (out / target).read_bytes() == expected
        assert not (out / "shards").exists()
        for path in out.iterdir():
            path.unlink()
    with capsys.disabled():
        print(f"\nsoak: {kills} processes killed in {rounds} runs, every one of them equal to the byte")
