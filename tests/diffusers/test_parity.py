"""A tiny Stable Diffusion with random weights, guided by us and by the library's own pipeline with SAG.

Nothing is downloaded. The library takes the sum over the network's outputs; ours does too (`delta_space`).
"""

import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionSAGPipeline
from tiny import unet, vae

from sag.diffusers import DiffusersDenoiser, LatentCondition, SchedulerSampler
from sag.diffusion import DDIM, sample
from sag.guidance import ClassifierFreeGuidance, GuidedDenoiser, SelfAttentionGuidance

STEPS = 4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
PARTS = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None,
         "requires_safety_checker": False}  # fmt: skip
TEXT, NEGATIVE = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(3))


def parts(prediction, scheduler=DDIMScheduler):
    return {"unet": unet(sample_size=16), "vae": vae(), "scheduler": scheduler(**own(scheduler, prediction)), **PARTS}


def own(scheduler, prediction):
    known = inspect.signature(scheduler.__init__).parameters
    return {**{key: value for key, value in BETAS.items() if key in known}, "prediction_type": prediction}


def theirs(pipeline, latents, cfg, **more):
    height, width = latents.shape[2] * 2, latents.shape[3] * 2  # this autoencoder halves once
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=TEXT, negative_prompt_embeds=NEGATIVE, latents=latents, height=height, width=width, guidance_scale=cfg,
        num_inference_steps=STEPS, output_type="latent", **more,
    ).images  # fmt: skip


def ours(pipeline, latents, cfg, scale, sampler):
    denoiser = DiffusersDenoiser.of(pipeline)
    condition = LatentCondition(text=TEXT, null_text=NEGATIVE)
    guidance = [SelfAttentionGuidance(scale, "middle", 1.0, 9)] if scale else []
    guidance += [ClassifierFreeGuidance(cfg - 1)] if cfg > 1 else []
    *_, last = sample(
        GuidedDenoiser(denoiser, guidance), sampler, latents, condition, noise=lambda t: torch.randn_like(latents)
    )
    return last.x


@pytest.mark.parametrize(
    ("cfg", "size"),
    [
        (1.0, (16, 16)),
        (7.5, (12, 20)),
        pytest.param(1.0, (12, 20), marks=pytest.mark.slow),
        pytest.param(7.5, (16, 16), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_sag_is_that_of_the_library(prediction, cfg, size):
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(4))
    expected = theirs(StableDiffusionSAGPipeline(**parts(prediction)), latents, cfg, sag_scale=0.75)
    plain = theirs(StableDiffusionPipeline(**parts(prediction)), latents, cfg)
    assert (expected - plain).abs().max() > 0.05  # guidance does something here
    found = ours(StableDiffusionPipeline(**parts(prediction)), latents, cfg, 0.75, SchedulerSampler(STEPS))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DEIS", "DPMSolverMultistep", "DPMSolverSinglestep", "PNDM", "UniPC"])
def test_sag_is_that_of_the_library_with_every_deterministic_scheduler_it_takes(name):
    """The library's pipeline takes schedulers with whole timesteps only."""
    kind = getattr(diffusers, {"DEIS": "DEISMultistep", "UniPC": "UniPCMultistep"}.get(name, name) + "Scheduler")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    expected = theirs(StableDiffusionSAGPipeline(**parts("epsilon", kind)), latents, 7.5, sag_scale=0.75)
    pipeline = StableDiffusionPipeline(**parts("epsilon", kind))
    found = ours(pipeline, latents, 7.5, 0.75, SchedulerSampler(STEPS, kind.__name__))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_without_sag_it_is_the_plain_pipeline(scheduler):
    """A scheduler that keeps x on another scale starts from its own standard deviation, which the noise is divided by."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    pipeline = StableDiffusionPipeline(**parts("epsilon", scheduler))
    expected = theirs(pipeline, latents, 7.5)
    name = scheduler.__name__
    pipeline.scheduler.set_timesteps(STEPS)
    sigma = pipeline.scheduler.init_noise_sigma if name != "DDIMScheduler" else None
    given = latents if sigma is None else latents * sigma / (pipeline.scheduler.sigmas[0] ** 2 + 1) ** 0.5
    found = ours(pipeline, given, 7.5, 0.0, SchedulerSampler(STEPS, name))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_our_ddim_on_the_same_steps_gives_the_same():
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    pipeline = StableDiffusionPipeline(**parts("v_prediction"))
    scheduled = SchedulerSampler(STEPS, options={"set_alpha_to_one": True, "steps_offset": 0})
    expected = ours(pipeline, latents, 7.5, 0.75, scheduled)
    found = ours(pipeline, latents, 7.5, 0.75, DDIM("ddim4"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_space_of_the_difference_matters():
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    pipeline = StableDiffusionPipeline(**parts("v_prediction"))
    denoisers = [DiffusersDenoiser.of(pipeline, delta_space=space) for space in (None, "output", "eps")]
    state = LatentCondition(text=TEXT, null_text=NEGATIVE)
    guided = [GuidedDenoiser(d, [SelfAttentionGuidance(0.75, "middle", 1.0, 9)])(latents, 500, state).eps for d in denoisers]
    assert torch.equal(guided[0], guided[1])
    assert (guided[1] - guided[2]).abs().max() > 1e-3
