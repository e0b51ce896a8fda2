"""The Python of README and docs/python.md runs."""

import re

import torch
from helpers import ROOT

import sag.checkpoints


def test_the_library_example_runs(monkeypatch):
    monkeypatch.setattr(sag.checkpoints, "load_network", lambda network, name: network.requires_grad_(False))
    section = (ROOT / "README.md").read_text().split("## As a library")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    for published, small in {
        "image_size 256": "image_size 64",
        "num_channels 256": "num_channels 32",
        "num_head_channels 64": "num_head_channels 32",
        "blur_sigma=9": "blur_sigma=9, blur_kernel=9",
        "DDPM(250)": "DDPM(2)",
    }.items():
        assert published in code
        code = code.replace(published, small)
    names = {}
    exec(code, names)
    assert names["last"].x.shape == (4, 3, 64, 64)
    x_t = torch.zeros(1, 3, 64, 64)
    assert torch.isfinite(names["guided"](x_t, 500).eps).all()
    assert names["guided"].passes(0) == 2


def test_the_page_for_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    names = {"__name__": "docs"}
    for block in blocks:
        exec(block, names)
    assert names["table"].mean["fid"].gt(0).all()
    assert "outputs/toy/samples_8x16x16x3.npz" in capsys.readouterr().out
