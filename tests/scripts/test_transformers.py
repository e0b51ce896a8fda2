"""A small DiT with its autoencoder, and a small SiT, by the programs: trained, sampled and looked at."""

import re

import numpy as np
import pytest
import torch
import yaml
from helpers import GOLDEN, ROOT, fill
from safetensors.torch import save_file

from sag.models import Autoencoder, DiT, SiT
from scripts import sample, train, visualize

NETWORK = {"image_size": 8, "in_channels": 3, "num_classes": 11, "width": 16, "depth": 2, "heads": 2}
AUTOENCODER = {"image_size": 16, "in_channels": 1, "latent_channels": 3, "channels": [8, 16], "layers": 1, "groups": 4}
QUICK = ["num_samples=3", "batch_size=2", "sampler.steps=4", "device=cpu"]


def model(folder, name, base, **changes):
    """Write the config of a model into a folder for --config-dir."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    content = {"defaults": [f"base/{base}@_here_", "_self_"], "name": name, "reference": None, "null_label": 10, **changes}
    (folder / f"model/{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def configs(tmp_path):
    """A folder with the configs of a DiT and a SiT on latents of 3 channels, and the DiT on pixels of docs/latent.md."""
    dit, sit, autoencoder = DiT(**NETWORK, out_channels=6), SiT(**NETWORK), fill(Autoencoder(**AUTOENCODER))
    for network in (dit, sit):
        positions = network.pos_embed.clone()
        fill(network).load_state_dict({**network.state_dict(), "pos_embed": positions})
    torch.save({"model": {}, "ema": dit.state_dict()}, tmp_path / "dit.pt")
    torch.save(sit.state_dict(), tmp_path / "sit.pt")
    save_file(autoencoder.state_dict(), tmp_path / "autoencoder.safetensors")
    configs = tmp_path / "configs"
    latents = {"network": AUTOENCODER, "checkpoint": str(tmp_path / "autoencoder.safetensors")}
    flow = {"schedule": {"_target_": "sag.diffusion.Schedule.flow"}, "variance": None, "prediction": "flow"}
    model(configs, "small_dit", "dit", checkpoint=str(tmp_path / "dit.pt"), network={**NETWORK, "out_channels": 6},
          autoencoder=latents)  # fmt: skip
    model(configs, "small_sit", "dit", checkpoint=str(tmp_path / "sit.pt"), network={**NETWORK, "_target_": "sag.models.SiT"},
          autoencoder=latents, diffusion=flow)  # fmt: skip
    (example,) = re.findall(r"```yaml\n(# .*?)```", (ROOT / "docs/latent.md").read_text(), re.DOTALL)
    (configs / "model/pixels32.yaml").write_text(example)
    return configs


@pytest.fixture
def sampled(configs, run_script):
    def call(name, *arguments):
        out = configs.parent / "samples"
        place = [f"--config-dir={configs}", f"model={name}", f"out={out}"]
        printed = run_script(sample.main, "sample", sample.SampleConfig, *place, *QUICK, *arguments)
        (file,) = out.glob("samples_*.npz")
        with np.load(file, allow_pickle=False) as arrays:
            return printed, arrays["arr_0"]

    return call


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("small_dit", "ddpm"),
        ("small_sit", "euler_maruyama"),
        pytest.param("small_sit", "heun", marks=pytest.mark.slow),
        pytest.param("small_sit", "ddim", marks=pytest.mark.slow),
    ],
)
def test_latents_are_sampled_guided_and_decoded(sampled, name, sampler):
    printed, images = sampled(name, f"sampler={sampler}", "guidance=[cfg,sag]", "guidance.sag.layer=block.1")
    assert "16x16x1 from latents of 8x8x3" in printed
    assert "scale 0.75, blur_sigma 1, blur_kernel 9" in printed
    assert images.shape == (3, 16, 16, 3)
    assert images[0].std() > 0
    assert (images[0] != images[1]).any()


@pytest.mark.slow
def test_a_second_run_finds_the_samples(sampled):
    assert "wrote" in sampled("small_sit", "sampler=heun", "guidance=[cfg]")[0]
    assert "is there already" in sampled("small_sit", "sampler=heun", "guidance=[cfg]")[0]


@pytest.mark.slow
def test_other_sizes_are_sampled(sampled):
    assert sampled("small_dit", "guidance=[]", "size=[8,24]")[1].shape == (3, 8, 24, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("small_dit", ["size=[16,18]"], "both divisible by 4 here, got [16, 18]"),
        ("small_dit", [], "unknown attention layer 'middle'; this network has: block.0 (4x4), block.1 (4x4)"),
        ("small_dit", ["guidance=[cfg]", "guidance.cfg.channels=4"], "is more than the model's 3"),
        ("small_dit", ["guidance=[cfg]", "guidance.cfg.channels=some"], "takes a whole number or all, got 'some'"),
        ("small_dit", ["guidance=[]", "sampler=heun"], "this sampler is for flows"),
        ("small_dit", ["guidance=[]", "model.autoencoder.network.groups=3"], "multiples of groups=3"),
        ("small_sit", ["guidance=[]"], "only a variance-preserving schedule has betas"),
    ],
)
def test_what_does_not_fit_is_one_sentence(sampled, name, arguments, message):
    with pytest.raises(SystemExit) as caught:
        sampled(name, *arguments)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.slow
def test_it_is_looked_at(configs, run_script):
    arguments = [
        "guidance.sag.layer=block.1",
        "samples=[0,1]",
        "sampler.steps=3",
        "device=cpu",
        f"out={configs.parent / 'seen'}",
    ]
    run_script(visualize.main, "visualize", visualize.VisualizeConfig, f"--config-dir={configs}", "model=small_dit", *arguments)
    assert (configs.parent / "seen/block.1.png").stat().st_size > 0


def test_it_is_trained_on_pixels_and_sampled(configs, run_script, sampled):
    data = ["data=npz", f"data.path={GOLDEN}/fashion_mnist_200.npz", "task.objective.label_dropout=0.1"]
    settings = [
        "settings.steps=2",
        "settings.batch_size=4",
        "log_every=1",
        "grid_steps=2",
        "device=cpu",
        f"out={configs.parent / 'run'}",
    ]
    place = [f"--config-dir={configs}", "model=pixels32"]
    run_script(train.main, "train", train.TrainConfig, *place, *data, *settings)
    assert (configs.parent / "run/grid000002.png").exists()
    weights = configs.parent / "run/ema_0.9999_000002.pt"
    images = sampled("pixels32", f"model.checkpoint={weights}", "guidance=[cfg,sag]", "guidance.sag.layer=block.0")[1]
    assert images.shape == (3, 32, 32, 3)
