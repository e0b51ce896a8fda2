"""Latent diffusion: the loss of autoencoders, losses of latents, and the scale that gives latents the variance one."""

import math

import numpy as np
import pytest
import torch
from helpers import fill, random_images
from PIL import Image

from sag.checkpoints import load_checkpoint
from sag.data import ArrayImages
from sag.data.tensors import dequantise, quantise
from sag.diffusion import GaussianDiffusion, Schedule
from sag.models import Autoencoder, DiT
from sag.models.autoencoder import AutoencoderOutput
from sag.training import (
    DiffusionLoss,
    LossSecondMoment,
    OfLatents,
    Pictures,
    Reconstruction,
    Settings,
    Trainer,
    latent_scale,
    reconstructions,
    train,
)

DIFFUSION = GaussianDiffusion(Schedule.linear(), "fixed_small", "v", clip_denoised=False)
DATA = ArrayImages(random_images(0, 20, size=8)[..., :1], np.arange(20) % 4)


def autoencoder(**options):
    torch.manual_seed(3)
    shape = {"image_size": 8, "in_channels": 1, "latent_channels": 2, "channels": (4, 8), "layers": 1, "groups": 4}
    return Autoencoder(**shape, **options)


def transformer(**options):
    torch.manual_seed(0)
    shape = {
        "image_size": 4,
        "in_channels": 2,
        "out_channels": 2,
        "num_classes": 5,
        "patch": 1,
        "width": 16,
        "depth": 2,
        "heads": 2,
    }
    return DiT(**{**shape, **options})


def trained(out, network, objective, steps=2, data=DATA, **options):
    settings = Settings(steps, 4, 1e-3, ema_rates=(0.5,))
    return train(network, objective, data, settings, out, device="cpu", log_every=1, **options)


def test_the_loss_of_an_autoencoder_is_the_error_and_the_divergence_of_two_gaussians():
    torch.manual_seed(1)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    mean, log_variance = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4)
    losses, parts = Reconstruction(0.3)(lambda images, draw: AutoencoderOutput(images + 0.25, mean, log_variance), x, None)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert parts["error"].tolist() == pytest.approx([0.25] * 5)
    assert parts["kl"].tolist() == pytest.approx((kl / math.log(2)).tolist(), rel=1e-5)
    assert losses.tolist() == pytest.approx((0.25 + 0.3 * kl / 64).tolist(), rel=1e-5)


def test_an_autoencoder_is_trained_on_points_of_its_posterior_that_depend_on_the_seed():
    network, x = autoencoder(), torch.zeros(3, 1, 8, 8)
    first, again, other = (torch.manual_seed(s) and Reconstruction()(network, x, None)[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(set(first.tolist())) == 3  # equal images, different points


def test_a_model_of_latents_has_the_loss_of_its_encoded_images():
    encoder, network = fill(autoencoder(scale=0.7)), fill(transformer())
    x, y = dequantise(DATA.take(np.arange(20))), torch.from_numpy(DATA.labels())
    inner = DiffusionLoss(DIFFUSION, num_classes=5, null_label=4, label_dropout=0.2)
    results = []
    for objective, images in ((OfLatents(inner, encoder), x), (inner, encoder.encode(x))):
        torch.manual_seed(0)
        results.append(objective(network, images, y)[0])
    assert torch.equal(*results)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):  # latents do not depend on the precision of the training
        rounded = OfLatents(inner, encoder)(network, x, y)[0]
    assert torch.allclose(rounded, results[0], rtol=0.1)


def test_the_encoder_is_not_trained_and_the_steps_are_learnt_through_it(tmp_path):
    encoder, timesteps = autoencoder(), LossSecondMoment(1000, history=1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    objective = OfLatents(DiffusionLoss(DIFFUSION, timesteps, num_classes=5, null_label=4), encoder)
    run = trained(tmp_path / "run", transformer(), objective)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
    assert load_checkpoint(str(run.weights))["final_layer.linear.weight"].any()
    assert float(timesteps.state()["counts"].sum()) == 8
    kept = torch.load(run.folder / "timesteps000002.pt", weights_only=True)
    assert torch.equal(kept["counts"], timesteps.state()["counts"])


def test_runs_of_both_parts_continue_with_the_same_bits_and_draw_images(tmp_path):
    of_latents = OfLatents(DiffusionLoss(DIFFUSION, num_classes=5, null_label=4), autoencoder())
    pictures = Pictures(DIFFUSION, 4, steps=2, autoencoder=of_latents.autoencoder)
    for name, network, objective, saved in (
        ("autoencoder", autoencoder, Reconstruction(0.01), reconstructions),
        ("latents", transformer, of_latents, pictures),
    ):
        whole = trained(tmp_path / name, network(), objective, steps=3)
        trained(tmp_path / f"{name}_stopped", network(), objective, saved=saved)
        continued = trained(tmp_path / f"{name}_stopped", network(), objective, steps=3, saved=saved)
        assert whole.weights.read_bytes() == continued.weights.read_bytes()
        drawn = Image.open(tmp_path / f"{name}_stopped/grid000003.png")
        assert drawn.size == {"latents": (8 * 8, 8 * 8), "autoencoder": (5 * 8, 4 * 2 * 8)}[name]


def test_pictures_show_each_image_above_its_reconstruction_by_the_averaged_weights(tmp_path):
    settings = Settings(1, 4, 1e-3, ema_rates=(0.5,))
    trainer = Trainer(autoencoder(), Reconstruction(), DATA, settings, tmp_path)
    expected = fill(autoencoder())
    trainer.ema[0.5] = list(expected.parameters())
    reconstructions(trainer)
    x = dequantise(DATA.take(np.arange(20)))
    shown = (
        np.asarray(Image.open(tmp_path / "grid000000.png").convert("L")).reshape(4, 16, 5, 8).swapaxes(1, 2).reshape(20, 16, 8)
    )
    assert (shown[:, :8] == quantise(x)[..., 0]).all()
    assert (shown[:, 8:] == quantise(expected(x).images)[..., 0]).all()


def test_the_scale_gives_latents_the_variance_one():
    encoder = fill(autoencoder(scale=0.3))
    scale = latent_scale(encoder, DATA)
    latents = fill(autoencoder(scale=scale)).encode(dequantise(DATA.take(np.arange(20))))
    assert float(latents.var(correction=0)) == pytest.approx(1)
    ends = ArrayImages(DATA.take(np.array([0, 19])))
    assert latent_scale(encoder, DATA, count=2) == latent_scale(encoder, ends) != scale
    encoder.load_state_dict({name: torch.zeros_like(value) for name, value in encoder.state_dict().items()})
    with pytest.raises(
        ValueError, match=r"^the latents of these images are all equal, so no scale gives them the variance one$"
    ):
        latent_scale(encoder, DATA)


@pytest.mark.parametrize(
    ("network", "size", "shape", "message"),
    [
        ({}, None, (4, 4, 1), r"^the data has images of 4x4x1, the network takes 8x8x1 "),
        ({}, None, (8, 8, 3), r"^the data has images of 8x8x3, the network takes 8x8x1 "),
        ({}, (16, 8), (8, 8, 1), r"^the data has images of 8x8x1, the network takes 16x8x1 "),
        ({}, (9, 8), (8, 8, 1), r"^size must be \[height,width\] in pixels, both divisible by 2 here"),
        ({"in_channels": 3}, None, (8, 8, 1), r"^the autoencoder has latents of 2 channels, but the network takes 3$"),
        ({"num_classes": 4}, None, (8, 8, 1), r"labels up to 3, but the model has 3 classes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, network, size, shape, message):
    classes, data = network.get("num_classes", 5), ArrayImages(np.zeros((4, *shape), np.uint8), np.arange(4))
    objective = OfLatents(DiffusionLoss(DIFFUSION, num_classes=classes, null_label=classes - 1), autoencoder())
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "run", transformer(**network), objective, data=data, size=size)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"^kl_weight must be 0 or more, got -1$"):
        Reconstruction(-1)
