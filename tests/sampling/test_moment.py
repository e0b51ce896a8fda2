"""What SAG sees at a step is what guidance does there."""

import numpy as np
import pytest
import torch
from helpers import small_denoiser

from sag.diffusion import DDIM, sample
from sag.guidance import BlurGuidance, GuidedDenoiser, SelfAttentionGuidance
from sag.noise import SampleNoise
from sag.sampling import Job, moments


def job(**arguments):
    technique = SelfAttentionGuidance(0.5, "output.1", 1.0, blur_kernel=9, **arguments)
    return Job(small_denoiser(), {"model": "small"}, range(2), [technique], DDIM(4))


def test_what_is_shown_is_what_guidance_does():
    asked = job()
    first, last = moments(asked, count=2)["output.1"]
    assert (first.time, last.time) == (0.999, 0)
    assert last.clean.shape == last.degraded.shape == (2, 16, 16, 3)
    outside = ~last.mask
    assert 0 < outside.sum() < outside.size
    assert (np.abs(last.clean[outside].astype(int) - last.degraded[outside]) <= 1).all()
    assert (last.clean[last.mask] != last.degraded[last.mask]).any()
    guided = GuidedDenoiser(asked.denoiser, asked.guidance)
    noise = SampleNoise(0, range(2), (3, 16, 16), torch.device("cpu"))
    steps = list(sample(guided, DDIM(4), noise.initial(), noise=noise.step))
    x_t, t = steps[2].x, 0
    shift = guided.respace(4)(x_t, t).eps - asked.denoiser.respace(4)(x_t, t).eps  # s (eps - eps_weak)
    assert np.allclose(shift.square().mean(1).sqrt().numpy(), 0.5 * last.difference, atol=1e-5)


def test_a_global_mask_needs_no_map_and_is_everywhere():
    (only,) = moments(job(mask="global"), count=1)["output.1"]
    assert only.mask.shape == (2, 16, 16)
    assert only.mask.all()


def test_another_layer_changes_the_mask_and_nothing_of_the_job():
    asked = job()
    found = moments(asked, ["output.1", "output.0"], count=1)
    assert (found["output.1"][0].mask != found["output.0"][0].mask).any()
    assert (found["output.1"][0].clean == found["output.0"][0].clean).all()
    assert asked.guidance[0].layer == "output.1"


@pytest.mark.parametrize(
    ("guidance", "arguments", "message"),
    [
        ([BlurGuidance(0.5, 1.0, 9)], {}, "there is nothing to see without SAG"),
        (None, {"layers": ["output.9"]}, "unknown attention layer 'output.9'"),
        (None, {"count": 0}, "moments must be at least 1, got 0"),
        (None, {"count": "3"}, "moments must be at least 1, got '3'"),
    ],
)
def test_bad_input_is_one_sentence(guidance, arguments, message):
    asked = job() if guidance is None else Job(small_denoiser(), {}, range(2), guidance, DDIM(4))
    with pytest.raises(ValueError, match=message):
        moments(asked, **arguments)
