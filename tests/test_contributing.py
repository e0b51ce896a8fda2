"""The recipes of CONTRIBUTING.md in a copy of the project: they only add files, pass all checks, and their commands run."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import GOLDEN, ROOT

QUICK = {  # what is added to a command so that it takes seconds
    "sample.py": ["num_samples=2", "batch_size=2", "sampler.steps=3", "device=cpu"],
    "evaluate.py": ["device=cpu"],
    "make_reference.py": ["extractor.weights=random", "device=cpu"],
    "train.py": ["data=npz", f"data.path={GOLDEN}/fashion_mnist_200.npz", "settings.steps=2", "settings.batch_size=2",
                 "log_every=1", "grid_steps=0", "device=cpu"],
}  # fmt: skip
RECIPES = dict(
    section.split("\n", 1) for section in re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
)


def files(recipe):
    """The new files of a recipe: each is named in a line of its own above a block."""
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", recipe, re.MULTILINE | re.DOTALL))


def commands(recipe):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", recipe, re.MULTILINE | re.DOTALL)
    return [line for language, block in blocks if not language for line in block.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a program of the copy, in its folder; with `folder`, the copy, and `new`, its new files."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("sag", "evaluations", "scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (np.arange(20 * 3073) % 251).astype(np.uint8).tofile(folder / "data_batch_1.bin")

    def call(*command):
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "SAG_CACHE": str(folder / "cache")}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call.folder, call.new = folder, []
    return call


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in RECIPES if files(RECIPES[title])])
def test_a_recipe_works_as_it_stands(run, title):
    for name, content in files(RECIPES[title]).items():
        assert not (ROOT / name).exists()
        (run.folder / name).write_text(content)
        run.new.append(name)
    for command in commands(RECIPES[title]):
        python, program, *arguments = shlex.split(command.replace("_010000.pt", "_000002.pt"))
        assert python == "python"
        assert run(program, *arguments, *QUICK[program.rpartition("/")[2]])


@pytest.mark.slow
def test_the_new_files_pass_all_checks(run):
    code = [name for name in run.new if name.endswith(".py")]
    assert len(code) == 5
    run("-m", "ruff", "check", *code)
    run("-m", "ruff", "format", "--check", *code)
    run("-m", "mypy")
    run("-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
