"""The download program, with the library's function replaced."""

from pathlib import Path

import pytest

from evaluations.model_downloads import Needed
from scripts import download


@pytest.fixture
def script(run_script, monkeypatch):
    asked = []

    def stand_in(what, parts, *, dry_run):
        asked.append((what, parts, dry_run))
        place, there = Path("cache/a.pt"), Path("cache/b.pt")
        return [] if what == "fashion32" else [Needed("http://host/a.pt", place, False, 2_210_000_000),
                                               Needed("http://host/b.pt", there, True, 5)]  # fmt: skip

    monkeypatch.setattr(download, "download", stand_in)

    def call(*arguments):
        printed = run_script(download.main, "download", download.DownloadConfig, *arguments).splitlines()
        return printed, asked.pop()

    return call


def test_what_is_asked_for_and_what_is_printed(script):
    parts = ["checkpoint", "classifier", "reference", "inception"]
    assert script("what=adm_imagenet128") == (["cache/a.pt", "cache/b.pt"], ("adm_imagenet128", parts, False))
    printed, asked = script("what=[a,b]", "parts=[checkpoint]", "dry_run=true")
    assert printed == ["2.21 GB    http://host/a.pt", "there      cache/b.pt"]
    assert asked == (["a", "b"], ["checkpoint"], True)
    assert script("what=fashion32")[0] == ["nothing to download: what these models need comes with the package"]


def test_what_is_missing_is_named(script):
    with pytest.raises(SystemExit, match="what"):
        script()
