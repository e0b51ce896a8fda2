"""Starts runs of scripts/sample.py quickly, as processes of their own: the imports are done once, then every run is a fork.

A line on stdin is a run to start (its arguments, variables and log), answered with its process number, or a process number to
wait for, answered with its exit code.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import sample
import torch
from common import run


def child(job):
    os.environ.update(job["environment"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.argv = ["sample.py", *job["arguments"]]
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
