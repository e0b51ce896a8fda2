"""Whole guided trajectories against the released SAG program and guided-diffusion."""

import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN, fill, golden, noise, relative_error

from sag.checkpoints import load_network
from sag.diffusion import DDIM, DDPM, Condition, Denoiser, GaussianDiffusion, sample
from sag.guidance import ClassifierGuidance, GuidedDenoiser, SelfAttentionGuidance, attention_mass
from sag.models import Classifier, UNet

CASES, ARRAYS = golden("sag")


@pytest.fixture(scope="module")
def classifier():
    return fill(Classifier.from_flags(CASES["classifier_flags"]))


@pytest.mark.parametrize(  # those without SAG are parts of those with it
    "name", [name if "sag" in name else pytest.param(name, marks=pytest.mark.slow) for name in CASES["cases"]]
)
def test_guided_steps_are_those_of_the_released_program(name, classifier):
    case = CASES["cases"][name]
    flags = case["model_flags"]
    heads = "released" if "quirk" in name else "own"
    layer = f"output.{case['attention_depth']}"
    diffusion = GaussianDiffusion.from_flags(flags | {"timestep_respacing": case["timestep_respacing"]})
    guidance = []
    if case["guide_scale"] is not None:
        guidance.append(SelfAttentionGuidance(case["guide_scale"] - 1, layer, case["blur_sigma"], heads=heads))
    if case["classifier_scale"] is not None:
        guidance.append(ClassifierGuidance(classifier, case["classifier_scale"]))
    denoiser = GuidedDenoiser(Denoiser(fill(UNet.from_flags(flags)), diffusion), guidance)
    sampler = DDIM(case["timestep_respacing"], case["eta"]) if case["sampler"] == "ddim" else DDPM(case["timestep_respacing"])
    y = Condition(torch.tensor(case["labels"])) if flags["class_cond"] else None
    shape = (2, 3, 64, 64)
    x_T = noise(7, 0, shape)

    mass = attention_mass(denoiser(x_T, 9, y, capture=[layer]).attention[layer], heads).flatten(1)
    assert relative_error(mass, ARRAYS[f"{name}/first_attention_mass"]) < 1e-4
    first, *_, last = sample(denoiser, sampler, x_T, y, noise=lambda t: noise(11, t, shape))
    assert relative_error(first.x, ARRAYS[f"{name}/first_step"]) < 1e-4
    assert relative_error(last.x, ARRAYS[f"{name}/sample"]) < 1e-3


def real_images(scale):
    """The fashion32_reference case: 20 DDPM steps of 4 images with weights trained by guided-diffusion."""
    flags = json.loads((GOLDEN / "fashion32_reference.json").read_text())
    network = UNet.from_flags(flags)
    load_network(network, str(GOLDEN / "fashion32_reference.pt"))
    diffusion = GaussianDiffusion.from_flags(flags).respace(20)
    denoiser = GuidedDenoiser(Denoiser(network, diffusion), [SelfAttentionGuidance(scale, "output.2", 1)])
    shape = (4, 3, 32, 32)
    *_, last = sample(denoiser, DDPM(20), noise(7, 0, shape), noise=lambda t: noise(11, t, shape))
    return last.x


@pytest.mark.parametrize(("key", "scale"), [("ddpm20_none", 0.0), ("ddpm20_sag0.3_sigma1_output2", 0.3)])
def test_real_weights_give_the_images_of_the_released_program(key, scale):
    expected = np.load(GOLDEN / "fashion32_reference.npz")[key]
    assert relative_error(real_images(scale), expected) < 1e-3
