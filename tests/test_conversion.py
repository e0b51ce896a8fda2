"""Checkpoints become safetensors files, which replace no file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sag import conversion
from sag.conversion import convert_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.5]), "b": torch.eye(2).T}, tmp_path / "ema.pt")
    return str(tmp_path / "ema.pt")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_file_has_the_weights_in_the_precision_asked_for(checkpoint, tmp_path, capsys, dtype):
    made = convert_checkpoint(checkpoint, tmp_path / "new/model.safetensors", dtype)
    assert capsys.readouterr() == ("", "")
    found = load_file(made.path)
    assert found["a"].dtype == getattr(torch, dtype)
    assert found["a"].tolist() == [1.0, 2.5]
    assert (made.tensors, made.size, made.dtype) == (2, made.path.stat().st_size, dtype)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "model.pt"}, r"out=model\.pt must end in \.safetensors"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"dtype": ["float16"]}, r"dtype must be one of float32, bfloat16, float16, got \['float16'\]"),
        ({"checkpoint": "nowhere.pt"}, "no checkpoint at 'nowhere.pt'"),
        ({}, "large in .* holds values that float16 cannot; use dtype=float32"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, arguments, message):
    torch.save({"large": torch.tensor([1e9])}, tmp_path / "ema.pt")
    given = {"checkpoint": str(tmp_path / "ema.pt"), "out": str(tmp_path / "m.safetensors"), **arguments}
    with pytest.raises((ValueError, OSError), match=message):
        convert_checkpoint(**given)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_file_that_is_there_or_comes_meanwhile_is_not_replaced(checkpoint, tmp_path, monkeypatch):
    own = tmp_path / "new.safetensors"
    read = conversion.read_checkpoint
    monkeypatch.setattr(conversion, "read_checkpoint", lambda source: own.write_bytes(b"mine") and read(source))
    with pytest.raises(FileExistsError, match=r"new\.safetensors"):
        convert_checkpoint(checkpoint, own)
    with pytest.raises(ValueError, match=r"new\.safetensors is there already; give another out, or remove it"):
        convert_checkpoint(checkpoint, own)
    assert own.read_bytes() == b"mine"


def test_how_the_weights_were_found_is_logged(tmp_path, caplog):
    save_file({"module.a": torch.ones(2)}, tmp_path / "wrapped.safetensors")
    with caplog.at_level("INFO", "sag"):
        convert_checkpoint(str(tmp_path / "wrapped.safetensors"), tmp_path / "model.safetensors")
    assert caplog.messages == [f"weights of {tmp_path}/wrapped.safetensors: prefix module. removed"]
    assert set(load_file(tmp_path / "model.safetensors")) == {"a"}
