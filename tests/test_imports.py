"""Imports go in one direction, as the contracts in pyproject.toml say."""

import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"]


def lint(folder):
    return subprocess.run(LINT, cwd=folder, capture_output=True, text=True)


def test_the_contracts_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "module", "broken"),
    [
        ("sag/noise.py", "hydra", "Only sag.build and scripts know Hydra"),
        ("sag/storage/files.py", "torch", "Files are read and written without torch"),
        ("sag/storage/npz.py", "sag.data.labels", "Within sag, imports go down this list only"),
        ("sag/diffusion/schedule.py", "sag.guidance.scale", "Within sag, imports go down this list only"),
        ("sag/storage/npz.py", "sag.build.checks", "Within sag, imports go down this list only"),
        ("scripts/status.py", "scripts.sample", "No program imports another one"),
        ("sag/devices.py", "evaluations.frechet", "scripts -> evaluations -> sag"),
        ("evaluations/resize.py", "evaluations.inception", "No cycles"),
    ],
)
def test_an_import_in_another_direction_breaks_one(tmp_path, file, module, broken):
    for package in ("sag", "evaluations", "scripts"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda _, names: [n for n in names if n == "weights"])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text() + f"\nimport {module}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert f"{broken} BROKEN" in done.stdout
