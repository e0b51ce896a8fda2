"""Loading weights: where they are found, and what is said of files that do not fit."""

import blobfile
import pytest
import torch
from helpers import noise, small_unet
from safetensors.torch import save_file

from sag.checkpoints import CheckpointMismatch, load_checkpoint, load_network
from sag.models import UNet


@pytest.fixture
def weights():
    return small_unet().state_dict()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_gives_the_network_its_output(tmp_path, weights, suffix, dtype):
    path = tmp_path / f"model{suffix}"
    stored = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    torch.save(stored, path) if suffix == ".pt" else save_file(stored, path)
    with torch.device("meta"):
        network = UNet(image_size=16, in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1,
                       attention_resolutions=(8,), channel_mult=(1, 2), num_head_channels=8)  # fmt: skip
    load_network(network, str(path))
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())
    x, tau = noise(5, 0, (1, 3, 16, 16)), torch.tensor([3.0])
    torch.testing.assert_close(
        network(x, tau).sample, small_unet()(x, tau).sample, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1
    )


def test_the_bundled_model_is_found_by_name():
    assert load_checkpoint("fashion32")["out.2.weight"].shape == (2, 32, 3, 3)


def test_a_missing_file_is_named_beside_the_bundled_models(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no checkpoint at '.*nothing.pt'.*bundled model \(fashion32, fashion32_classifier, fashion32_weak\)",
    ):
        load_checkpoint(str(tmp_path / "nothing.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_named_as_such(tmp_path, weights, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(weights, path) if suffix == ".pt" else save_file({k: v.contiguous() for k, v in weights.items()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        load_checkpoint(str(path))


def test_an_optimizer_file_is_recognised(tmp_path):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "opt000100.pt")
    with pytest.raises(ValueError, match="state of an optimizer; give the model"):
        load_checkpoint(str(tmp_path / "opt000100.pt"))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_objects_are_not_unpickled(tmp_path, capsys):
    torch.save({"weight": Harmful()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="more than plain tensors"):
        load_checkpoint(str(tmp_path / "model.pt"))
    assert "never" not in capsys.readouterr().out


def test_a_nested_file_is_named_by_what_it_holds(tmp_path, weights):
    torch.save({"model": dict(weights), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="it holds: model, epoch"):
        load_checkpoint(str(tmp_path / "model.pt"))


def test_a_file_that_does_not_fit_says_which_entries_differ(tmp_path, weights):
    weights["extra.bias"] = weights.pop("out.2.bias")
    weights["out.0.weight"] = torch.ones(7)
    torch.save(weights, tmp_path / "model.pt")
    expected = (
        r"1 missing \(out.2.bias\), 1 unexpected \(extra.bias\), 1 of another shape \(out.0.weight \(7,\) instead of \(32,\)\)"
    )
    with pytest.raises(CheckpointMismatch, match=expected) as caught:
        load_network(small_unet(), str(tmp_path / "model.pt"))
    assert caught.value.shapes["extra.bias"] == (6,)


@pytest.mark.parametrize("url", ["gs://bucket/folder/model.pt", "az://account/container/model.pt"])
def test_blob_addresses_are_read_through_blobfile(tmp_path, weights, monkeypatch, url):
    torch.save(weights, tmp_path / "remote.pt")

    class LocalContext:
        def stat(self, path):
            assert path == url
            return blobfile.stat(str(tmp_path / "remote.pt"))

        def BlobFile(self, path, mode):
            return open(tmp_path / "remote.pt", mode)

    monkeypatch.setattr(blobfile, "create_context", lambda **options: LocalContext())
    assert load_checkpoint(url).keys() == weights.keys()
