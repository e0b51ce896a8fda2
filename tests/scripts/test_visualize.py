"""What SAG sees, drawn: masks, degraded images and differences are those of the sampler's own steps."""

import numpy as np
import pytest
import torch
from helpers import small_denoiser
from PIL import Image

from sag.diffusion import DDIM, sample
from sag.guidance import GuidedDenoiser, SelfAttentionGuidance
from sag.noise import SampleNoise
from scripts import visualize

QUICK = ["sampler.steps=3", "samples=[2,5]", "moments=3", "device=cpu"]


@pytest.fixture
def script(run_script):
    return lambda *arguments: run_script(visualize.main, "visualize", visualize.VisualizeConfig, *arguments)


def test_a_strip_and_an_animation_for_every_layer(script, tmp_path):
    printed = script(*QUICK, "layers=[middle,output.2]", f"out={tmp_path / 'out'}")
    names = ["middle.gif", "middle.png", "output.2.gif", "output.2.png", "record.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert printed.count("wrote ") == 2
    animation = Image.open(tmp_path / "out/middle.gif")
    assert (animation.n_frames, animation.size) == (3, (2 * 96, 4 * 96))
    strip = np.asarray(Image.open(tmp_path / "out/middle.png").convert("RGB")).astype(int)
    assert (strip[..., 0] - strip[..., 1]).max() > 50  # some of it is red


def test_what_is_shown_is_what_guidance_does():
    denoiser = small_denoiser()
    sag = SelfAttentionGuidance(0.5, "output.1", 1.0, blur_kernel=9)
    noise = SampleNoise(0, range(2), (3, 16, 16), torch.device("cpu"))
    guided = GuidedDenoiser(denoiser, [sag])
    states = visualize.trajectory(guided, DDIM(4), noise, None, 2)
    assert list(states) == [3, 0]
    steps = list(sample(guided, DDIM(4), noise.initial(), noise=noise.step))
    assert torch.equal(states[3], noise.initial())
    assert torch.equal(states[0], steps[2].x)
    moment = visualize.observe(denoiser, sag, states[0], 0, None, noise)
    assert moment.time == 0
    assert moment.clean.shape == moment.degraded.shape == (2, 16, 16, 3)
    outside = ~moment.mask
    assert 0 < outside.sum() < outside.size
    close = np.abs(moment.clean[outside].astype(int) - moment.degraded[outside]) <= 1
    assert close.all()
    assert (moment.clean[moment.mask] != moment.degraded[moment.mask]).any()
    x_t = states[0]
    shift = guided(x_t, 0).eps - denoiser(x_t, 0).eps  # s (eps - eps_weak)
    assert np.allclose(shift.square().mean(1).sqrt().numpy(), 0.5 * moment.difference, atol=1e-5)


def test_a_global_mask_needs_no_map_and_is_everywhere():
    sag = SelfAttentionGuidance(0.5, "output.1", 1.0, blur_kernel=9, mask="global")
    noise = SampleNoise(0, range(2), (3, 16, 16), torch.device("cpu"))
    moment = visualize.observe(small_denoiser(), sag, noise.initial(), 3, None, noise)
    assert moment.mask.shape == (2, 16, 16)
    assert moment.mask.all()


def test_the_layers_are_listed(script):
    lines = script("list=true").splitlines()
    assert lines[0].split() == ["layer", "resolution", "channels", "heads"]
    assert ["middle", "4x4", "128", "4"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guidance=[cfg]"], r"there is nothing to see without SAG; add sag to guidance=\[\.\.\.\]"),
        (["layers=[output.9]"], "unknown attention layer"),
        (["moments=0"], "moments must be at least 1"),
        (["samples=[-1]"], "samples numbers >= 0"),
    ],
)
def test_bad_input_is_one_sentence(script, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        script(*QUICK, *arguments, f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
