"""The conversion of checkpoints as a user runs it."""

import pytest
import torch

from scripts import bundle


@pytest.fixture
def script(run_script, tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.5]), "large": torch.tensor([1e9])}, tmp_path / "ema.pt")

    def call(*arguments):
        given = [f"checkpoint={tmp_path}/ema.pt", f"out={tmp_path}/model.safetensors", *arguments]
        return run_script(bundle.main, "bundle", bundle.BundleConfig, *given)

    return call


def test_a_checkpoint_is_converted(script, tmp_path):
    assert script("dtype=bfloat16") == f"wrote {tmp_path}/model.safetensors: 2 tensors, 0.00 MB, bfloat16\n"
    assert (tmp_path / "model.safetensors").exists()


def test_what_cannot_be_converted_is_one_sentence(script, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: large in .* holds values that float16 cannot; use dtype=float32$"):
        script()
    assert not (tmp_path / "model.safetensors").exists()
