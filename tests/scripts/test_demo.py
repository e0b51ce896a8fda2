"""The demo as a user runs it."""

import numpy as np
import pytest
from PIL import Image

from scripts import demo

QUICK = "['model=fashion32','sampler=ddim','sampler.steps=ddim2','labels=balanced','batch_size=12']"


@pytest.mark.slow
def test_the_demo_writes_pictures_and_a_table_from_the_same_noise(run_script, tmp_path):
    arguments = ["num_samples=12", f"common={QUICK}", "device=cpu", f"out={tmp_path / 'demo'}"]
    printed = run_script(demo.main, "demo", demo.DemoConfig, *arguments)
    names = [path.name for path in (tmp_path / "demo").iterdir() if path.is_file()]
    assert sorted(names) == ["masks.png", "record.json", "samples.png", "scores.png", "table.md"]
    table = (tmp_path / "demo/table.md").read_text()
    assert table in printed
    assert table.splitlines()[0] == "| 12 samples | seeds | FID | sFID | IS | precision | recall | agreement |"
    assert [line.split(" | ")[0] for line in table.splitlines()[2:8]] == [
        "| no guidance", "| SAG", "| classifier", "| CFG", "| SAG + classifier", "| SAG + CFG"
    ]  # fmt: skip
    arrays = [np.load(path)["arr_0"].tobytes() for path in (tmp_path / "demo").glob("*/samples_*.npz")]
    assert len(set(arrays)) == 6
    assert Image.open(tmp_path / "demo/masks.png").size[0] > 200
    with pytest.raises(SystemExit, match="num_samples must be at least 10, got 3"):
        run_script(demo.main, "demo", demo.DemoConfig, "num_samples=3", f"out={tmp_path / 'other'}")
    assert not (tmp_path / "other").exists()
