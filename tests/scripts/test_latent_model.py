"""The bundled model of latents: its size, what it draws, what guidance changes, and how such a model is trained."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT
from PIL import Image
from safetensors import safe_open

import sag
from evaluations.fashion import FashionFeatures
from evaluations.web.comparison import SideBySide
from sag.data.tensors import quantise
from sag.sampling import runner
from scripts import evaluate, sample, train, visualize

FILES = [ROOT / f"sag/weights/fashion32_{name}.safetensors" for name in ("latent", "autoencoder")]
QUICK = ["model=fashion32_latent", "sampler=ddim", "sampler.steps=ddim10", "device=cpu"]


def made(guidance, *overrides, count=4, rows=None):
    """Samples of the classes 0, 1, ... in turn, (n, 1, 32, 32) about in [-1, 1]."""
    cfg = sag.compose("sample", [*QUICK, "labels=balanced", f"num_samples={count}", f"guidance={guidance}", *overrides])
    return sag.build.job(cfg).make(range(count) if rows is None else rows)


@pytest.fixture(scope="module")
def plain():
    return made("[]")


def test_both_networks_take_at_most_4_megabytes_in_half_precision():
    assert sum(file.stat().st_size for file in FILES) <= 4_000_000
    for file in FILES:
        with safe_open(file, "pt") as content:
            names = content.keys()  # no mapping: it cannot be iterated
            assert {content.get_slice(name).get_dtype() for name in names} == {"F16"}


def test_latents_of_images_have_the_variance_one_and_are_decoded_to_the_images():
    with np.load(GOLDEN / "fashion_mnist_200.npz", allow_pickle=False) as arrays:
        images = sag.data.tensors.dequantise(arrays["arr_0"][..., :1])
    model = sag.build.denoiser(sag.compose("sample", QUICK))
    latents = model.autoencoder.encode(images)
    assert latents.shape == (200, *model.shape) == (200, 4, 8, 8)
    assert float(latents.std()) == pytest.approx(1, abs=0.1)
    decoded = model.decode(latents)
    assert decoded.shape == images.shape
    assert float((decoded - images).abs().mean()) < 0.1
    assert float((decoded.roll(1, 0) - images).abs().mean()) > 0.3  # of other images


def test_samples_show_the_class_of_their_label():
    images = made("[cfg]", count=30)
    assert images.shape == (30, 1, 32, 32)
    found = FashionFeatures()(torch.from_numpy(quantise(images)).permute(0, 3, 1, 2)).logits.argmax(1)
    assert float((found == torch.arange(30) % 10).float().mean()) >= 0.7


@pytest.mark.parametrize("name", ["cfg", "sag"])
def test_guidance_changes_samples_and_scale_0_is_bit_equal_to_none(plain, name):
    guided = made(f"[{name}]")
    assert guided.isfinite().all()
    assert float((guided - plain).abs().mean()) > 0.001
    assert torch.equal(made(f"[{name}]", f"guidance.{name}.scale=0"), plain)


def test_a_sample_does_not_depend_on_its_batch():
    whole = made("[cfg,sag]")
    single = torch.cat([made("[cfg,sag]", rows=[row]) for row in (0, 3)])
    torch.testing.assert_close(single, whole[[0, 3]], rtol=0, atol=1e-3)


def test_a_stopped_run_continues_with_the_same_bytes(run_script, tmp_path, monkeypatch):
    def sampled(name):
        quick = [*QUICK, "num_samples=2", "batch_size=1", "guidance=[cfg,sag]", f"out={tmp_path / name}"]
        return run_script(sample.main, "sample", sample.SampleConfig, *quick)

    assert "32x32x1 from latents of 8x8x4" in sampled("whole")
    with monkeypatch.context() as killed:
        killed.setattr(runner.shards, "pack", lambda *arguments: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            sampled("killed")
    (tmp_path / "killed/shards/00000001-00000001.npz").unlink()
    sampled("killed")
    whole, continued = (tmp_path / name / "samples_2x32x32x3.npz" for name in ("whole", "killed"))
    assert whole.read_bytes() == continued.read_bytes()


@pytest.mark.slow
def test_samples_are_scored_and_masks_of_latents_shown(run_script, tmp_path):
    arguments = [*QUICK, "num_samples=40", "guidance=[cfg]", f"out={tmp_path / 'samples'}"]
    run_script(sample.main, "sample", sample.SampleConfig, *arguments)
    scoring = [f"samples={tmp_path / 'samples'}", "device=cpu"]
    scores = run_script(evaluate.main, "evaluate", evaluate.EvaluateConfig, *scoring)
    assert re.search(r"^fid_40 ", scores, re.MULTILINE)  # the reference is that of Fashion-MNIST
    seen = ["model=fashion32_latent", "sampler.steps=3", "samples=[0,1]", "device=cpu", f"out={tmp_path / 'seen'}"]
    assert "wrote" in run_script(visualize.main, "visualize", visualize.VisualizeConfig, *seen)
    (animation,) = tmp_path.glob("seen/block.*.gif")
    assert Image.open(animation).n_frames == 3


def test_the_page_in_the_browser_compares_two_pictures_from_the_same_noise():
    pair = SideBySide(["model=fashion32_latent", "sampler=ddim", "device=cpu"], count=2)
    compared = pair.compare(replace(pair.start, steps=5, label="7"))
    assert compared.off.shape == compared.on.shape == (32, 32, 3)
    assert (compared.off != compared.on).any()
    assert [moment.mask.shape for moment in compared.moments] == [(1, 32, 32)] * 2


@pytest.mark.slow
def test_an_autoencoder_and_a_model_of_its_latents_are_trained_by_the_two_commands(run_script, tmp_path):
    program = (train.main, "train", train.TrainConfig)
    common = ["model=fashion32_latent", "data=npz", f"data.path={tmp_path}/grey.npz", "settings.batch_size=4", "log_every=1"]
    common += ["model.network.width=16", "model.network.heads=2", "model.autoencoder.network.channels=[8,8,8]", "device=cpu"]
    with np.load(GOLDEN / "fashion_mnist_200.npz", allow_pickle=False) as arrays:
        np.savez(tmp_path / "grey.npz", arrays["arr_0"][:20, ..., :1], arrays["arr_1"][:20])
    with pytest.raises(SystemExit, match=r"weights are missing; train it first, with python scripts/train.py task=autoen"):
        run_script(*program, *common, "model.autoencoder.checkpoint=null", "settings.steps=1", f"out={tmp_path / 'none'}")
    printed = run_script(*program, "task=autoencoder", *common, "settings.steps=2", f"out={tmp_path / 'autoencoder'}")
    last_line = r"of (\S+) have the variance one with model.autoencoder.network.scale=(\S+)$"
    weights, scale = re.search(last_line, printed, re.MULTILINE).groups()
    assert Image.open(tmp_path / "autoencoder/grid000002.png").size == (5 * 32, 4 * 64)
    latents = [f"model.autoencoder.checkpoint={weights}", f"model.autoencoder.network.scale={scale}"]
    arguments = [*common, *latents, "grid_steps=2", "task.objective.label_dropout=0.1", f"out={tmp_path / 'latent'}"]
    run_script(*program, *arguments, "settings.steps=1")
    assert "from step 1 to 2" in run_script(*program, *arguments, "settings.steps=2")
    assert Image.open(tmp_path / "latent/grid000002.png").size == (8 * 32, 8 * 32)
    with pytest.raises(SystemExit, match=r"holds results of other settings.*scale \(\S+ there, 2 here\)"):
        run_script(*program, *arguments, "model.autoencoder.network.scale=2", "settings.steps=3")
