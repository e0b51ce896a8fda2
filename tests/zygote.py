"""Starts runs of scripts/sample.py quickly, as processes of their own: the imports are done once, then every run is a fork.

A line on stdin is a run to start (its arguments, variables and log, and perhaps a file that it dies in the middle of writing),
answered with its process number, or a process number to wait for, answered with its exit code.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import sample
import torch
from common import run

from sag.storage import folders


class Dying:
    """A file whose process is killed in the middle of its n-th write."""

    def __init__(self, file, writes):
        self.file, self.writes = file, writes

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.writes -= 1
        if self.writes == 0:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(content)


def die_writing(name, writes):
    atomic = folders.atomic

    @contextlib.contextmanager
    def dying(path, **options):
        with atomic(path, **options) as file:
            yield Dying(file, writes) if path.name == name else file

    folders.atomic = dying


def child(job):
    os.environ.update(job["environment"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.argv = ["sample.py", *job["arguments"]]
    if job["die_writing"]:
        die_writing(*job["die_writing"])
    code = 0
    try:
        run(sample.main, "sample", sample.SampleConfig)
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
