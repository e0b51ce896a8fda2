"""The demo and the conversion of checkpoints, as a user runs them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scripts import bundle, demo

QUICK = "['model=fashion32','sampler=ddim','sampler.steps=ddim2','labels=balanced','batch_size=12']"


@pytest.mark.slow
def test_the_demo_writes_pictures_and_a_table_from_the_same_noise(run_script, tmp_path):
    arguments = ["num_samples=12", f"common={QUICK}", "device=cpu", f"out={tmp_path / 'demo'}"]
    printed = run_script(demo.main, "demo", demo.DemoConfig, *arguments)
    names = [path.name for path in (tmp_path / "demo").iterdir() if path.is_file()]
    assert sorted(names) == ["masks.png", "record.json", "samples.png", "scores.png", "table.md"]
    table = (tmp_path / "demo/table.md").read_text()
    assert table in printed
    assert table.splitlines()[0] == "| 12 samples | FID | sFID | IS | precision | recall | agreement |"
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| no guidance", "| SAG", "| classifier", "| CFG", "| SAG + classifier", "| SAG + CFG"
    ]  # fmt: skip
    arrays = [np.load(path)["arr_0"].tobytes() for path in (tmp_path / "demo").glob("*/samples_*.npz")]
    assert len(set(arrays)) == 6
    assert Image.open(tmp_path / "demo/masks.png").size[0] > 200
    with pytest.raises(SystemExit, match="num_samples must be at least 10, got 3"):
        run_script(demo.main, "demo", demo.DemoConfig, "num_samples=3", f"out={tmp_path / 'other'}")
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_is_converted(run_script, tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.5]), "b": torch.eye(2)}, tmp_path / "ema.pt")
    arguments = [f"checkpoint={tmp_path / 'ema.pt'}", f"out={tmp_path / 'model.safetensors'}"]
    assert "2 tensors" in run_script(bundle.main, "bundle", bundle.BundleConfig, *arguments)
    found = load_file(tmp_path / "model.safetensors")
    assert found["a"].dtype == torch.float16
    assert found["a"].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=model.pt"], r"out=model\.pt must end in \.safetensors"),
        (["dtype=int8"], "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (["checkpoint=nowhere.pt"], "no checkpoint at 'nowhere.pt'"),
        ([], "large in .* holds values that float16 cannot; use dtype=float32"),
    ],
)
def test_what_cannot_be_converted_is_said(run_script, tmp_path, arguments, message):
    torch.save({"large": torch.tensor([1e9])}, tmp_path / "ema.pt")
    given = {"checkpoint": f"{tmp_path}/ema.pt", "out": f"{tmp_path}/m.safetensors"}
    given |= dict(a.split("=", 1) for a in arguments)
    with pytest.raises(SystemExit, match=message):
        run_script(bundle.main, "bundle", bundle.BundleConfig, *(f"{key}={value}" for key, value in given.items()))
    assert not list(tmp_path.glob("*.safetensors"))
