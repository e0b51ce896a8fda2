"""Starts the programs in scripts/ quickly, as processes of their own: the imports are done once, then every run is a fork.

A line on stdin is a run to start (program, arguments, variables and log, and perhaps where it ends in the middle of writing),
answered with its process number, or a process number to wait for, answered with its exit code.
"""

import contextlib
import errno
import importlib
import json
import os
import signal
import sys

import torch

from sag.storage import files, folders
from scripts.common import run

LATER = {  # what programs import when they run
    "sample": ["sag.build.objects", "sag.sampling.runner"],
    "train": ["sag.training"],
    "evaluate": ["evaluations.build", "evaluations.inception"],
    "make_reference": ["evaluations.reference"],
    "visualize": ["sag.build.objects", "evaluations.study.pictures"],
    "report": ["evaluations.study.report"],
    "reproduce": ["evaluations.study.reproduce", "sag.sampling.runner"],
    "bundle": ["sag.conversion"],
}
for name in sys.argv[1:]:  # the programs that will be started
    for module in [f"scripts.{name}", *LATER[name]]:
        importlib.import_module(module)


class Dying:
    """A file whose process is killed, or stops, in the middle of its n-th write."""

    def __init__(self, file, writes, number):
        self.file, self.writes, self.number = file, writes, number

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.writes -= 1
        if self.writes == 0:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            os.kill(os.getpid(), self.number)
        return self.file.write(content)


def die_writing(name, writes, number=signal.SIGKILL):
    atomic = folders.atomic

    @contextlib.contextmanager
    def dying(path, **options):
        with atomic(path, **options) as file:
            yield Dying(file, writes, number) if path.name == name else file

    folders.atomic = dying


class Failing:
    """A file that writes half of what it is given; then the process is killed, or the disk fails."""

    def __init__(self, file, kind):
        self.file, self.kind = file, kind

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, "the disk fails")


def end_writing(count, kind):
    """Have the `count`-th write of a file fail."""
    write, left = files._Watched.write, [count]

    def counting(self, content):
        left[0] -= 1
        if left[0] == 0:
            self._file = Failing(self._file, kind)
        return write(self, content)

    files._Watched.write = counting


def child(job):
    os.environ.update(job["environment"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    name = job["program"]
    sys.argv = [f"{name}.py", *job["arguments"]]
    program = importlib.import_module(f"scripts.{name}")
    schema = getattr(program, "".join(word.capitalize() for word in name.split("_")) + "Config")
    if job["die_writing"]:
        die_writing(*job["die_writing"])
    if job["end_writing"]:
        end_writing(*job["end_writing"])
    code = 0
    try:
        run(program.main, name, schema)
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        code = 2
    sys.stdout.flush()
    os._exit(code or 0)


for line in sys.stdin:
    job = json.loads(line)
    if isinstance(job, int):
        print(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)
    else:
        pid = os.fork()
        if pid == 0:
            child(job)
        print(pid, flush=True)
