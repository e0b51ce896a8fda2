"""Puts the helpers and the scripts on the path, and keeps tests off the user's cache."""

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script's main in this process with arguments; returns what it printed, or raises SystemExit with its message."""
    from common import run

    def call(main, config_name, schema, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{config_name}.py", *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        GlobalHydra.instance().clear()
        run(main, config_name, schema)
        return capsys.readouterr().out

    return call
