"""The file of a benchmark's result."""

import json

import pytest
import torch

from evaluations.benchmark.record import ResultFile
from sag.storage import LocalFolder

CPU = torch.device("cpu")


def test_a_result_is_replaced_by_one_with_the_same_settings_only(tmp_path):
    file = ResultFile(LocalFolder(tmp_path), "x.json", "key")
    file.write({"seconds": 1.0}, CPU)
    file.write({"seconds": 2.0}, CPU)
    facts = json.loads((tmp_path / "x.json").read_text())
    assert list(facts) == ["seconds", "device", "threads", "torch", "settings"]
    assert (facts["seconds"], facts["torch"], facts["settings"]) == (2.0, torch.__version__, "key")
    with pytest.raises(ValueError, match=r"x\.json is there already, and no run with these settings wrote it"):
        ResultFile(LocalFolder(tmp_path), "x.json", "other").check()


@pytest.mark.parametrize("content", [b"", b"mine", b"[]", b"{}", b'{"settings": 3}', b"\xff"])
def test_what_no_benchmark_wrote_is_not_replaced(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is there already, and no run with these settings wrote it"):
        ResultFile(LocalFolder(tmp_path), "x.json", "key").write({}, CPU)
    assert (tmp_path / "x.json").read_bytes() == content
