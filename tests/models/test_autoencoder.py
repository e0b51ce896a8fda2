"""The autoencoder against that of the library diffusers, whose files it reads."""

import pytest
import torch
from diffusers import AutoencoderKL
from helpers import fill, noise, shapes
from safetensors.torch import save_file

from sag.checkpoints import load_network
from sag.models import Autoencoder, autoencoder

SMALL = {"image_size": 16, "in_channels": 1, "latent_channels": 3, "channels": (8, 16, 16), "layers": 1, "groups": 4}


def small(**changes):
    return fill(Autoencoder(**{**SMALL, **changes}))


def theirs(ours, quant_convs=True):
    """The autoencoder of diffusers with the same weights."""
    channels = [len(level.resnets[0].conv2.bias) for level in ours.encoder.down_blocks]
    found = AutoencoderKL(
        in_channels=ours.in_channels,
        out_channels=ours.in_channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=channels,
        layers_per_block=len(ours.encoder.down_blocks[0].resnets),
        latent_channels=ours.latent_channels,
        norm_num_groups=ours.encoder.conv_norm_out.num_groups,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
    )
    found.load_state_dict(ours.state_dict(), strict=True)
    return found.eval()


@pytest.mark.parametrize("changes", [{}, {"quant_convs": False, "layers": 2}, {"in_channels": 3, "channels": (8,)}])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_encoding_and_decoding_are_those_of_diffusers(changes, size):
    ours = small(scale=0.5, shift=0.25, **changes)
    other = theirs(ours, changes.get("quant_convs", True))
    images = noise(1, 0, (2, ours.in_channels, *size))
    with torch.no_grad():
        posterior = other.encode(images).latent_dist
        latents = ours.encode(images)
        decoded, expected = ours.decode(latents), other.decode(latents / 0.5 + 0.25).sample
        output = ours(images, lambda mean: noise(2, 0, mean.shape))
        sampled = other.decode(posterior.mean + posterior.std * noise(2, 0, latents.shape)).sample
    torch.testing.assert_close(latents, 0.5 * (posterior.mean - 0.25), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.log_variance, posterior.logvar, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.images, sampled, rtol=0, atol=1e-5)
    assert latents.shape == (2, ours.latent_channels, size[0] // ours.factor, size[1] // ours.factor)


def test_entries_are_those_of_the_published_autoencoder():
    """sd-vae-ft-ema has the architecture of diffusers' default for Stable Diffusion: 83,653,863 parameters."""
    with torch.device("meta"):
        ours = Autoencoder(image_size=256)
        other = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    assert shapes(ours) == shapes(other)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863
    assert ours.factor == 8
    assert ours.scale == other.config.scaling_factor


@pytest.mark.parametrize("early", [False, True])
def test_files_of_any_version_of_diffusers_load(tmp_path, early):
    ours = small()
    state = dict(ours.state_dict())
    if early:
        for part in ("encoder", "decoder"):
            for now, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                for kind in ("weight", "bias"):
                    name = f"{part}.mid_block.attentions.0."
                    state[f"{name}{before}.{kind}"] = state.pop(f"{name}{now}.{kind}")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with torch.device("meta"):
        network = Autoencoder(**SMALL)
    notes = load_network(network, str(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert notes == (("names of an earlier version changed to the present ones",) if early else ())
    images = noise(1, 0, (1, 1, 16, 16))
    assert torch.equal(network.encode(images), ours.encode(images))


def test_large_batches_are_made_in_slices(monkeypatch):
    network = small()
    images = noise(1, 0, (5, 1, 16, 16))
    latents = network.encode(images)
    whole = network.decode(latents)
    counts = []
    inner = type(network)._images
    monkeypatch.setattr(Autoencoder, "_images", lambda self, z: counts.append(len(z)) or inner(self, z))
    monkeypatch.setattr(autoencoder, "AT_ONCE", 2 * 16 * 16)
    torch.testing.assert_close(network.decode(latents), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(network.encode(images), latents, rtol=0, atol=1e-5)
    assert counts == [2, 2, 1]
    monkeypatch.setattr(autoencoder, "AT_ONCE", 1)
    assert network.decode(latents).shape == whole.shape


def test_bfloat16_stays_close_and_keeps_norms_and_latents():
    network = small()
    images = noise(1, 0, (2, 1, 16, 16))
    exact = network.decode(network.encode(images))
    network.set_precision(torch.bfloat16)
    dtypes = {name: value.dtype for name, value in network.named_parameters()}
    for name in ("encoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.weight"):
        assert dtypes[name] == torch.bfloat16, name
    for name in ("encoder.conv_out.weight", "decoder.conv_out.weight", "quant_conv.weight", "encoder.conv_norm_out.weight"):
        assert dtypes[name] == torch.float32, name
    latents = network.encode(images)
    rough = network.decode(latents)
    assert latents.dtype == rough.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max() / exact.std()) < 0.2
    network.set_precision(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_it_learns_to_reconstruct():
    torch.manual_seed(0)
    network = Autoencoder(**SMALL)
    images = torch.rand(8, 1, 1, 1) * torch.linspace(-1, 1, 16).expand(8, 1, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        output = network(images, torch.randn_like)
        kl = 0.5 * (output.mean.square() + output.log_variance.exp() - 1 - output.log_variance).mean()
        loss = (output.images - images).square().mean() + 1e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]


def test_a_small_network_for_grey_images_has_less_than_half_a_million_parameters():
    with torch.device("meta"):
        network = Autoencoder(image_size=32, in_channels=1, channels=(16, 32, 48), layers=1, groups=16)
    assert sum(p.numel() for p in network.parameters()) < 500_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small().encode(torch.zeros(1, 3, 16, 16)), "takes images of 1 channels, got 3"),
        (lambda: small().encode(torch.zeros(1, 1, 16, 18)), "divisible by 4 for this autoencoder, got 16x18 pixels"),
        (lambda: small().decode(torch.zeros(1, 4, 4, 4)), "latents of 3 channels, got 4"),
        (lambda: small(channels=()), r"one or more multiples of groups=4, got \[\]"),
        (lambda: small(channels=(8, 6)), r"multiples of groups=4, got \[8, 6\]"),
        (lambda: small(image_size=18), "image_size 18 must be divisible by 4 with 3 levels"),
        (lambda: small(scale=0.0), "scale of latents must not be 0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
