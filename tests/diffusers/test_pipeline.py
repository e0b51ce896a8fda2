"""Tiny pipelines of the library with random weights, guided in their own loops. Nothing is downloaded."""

import copy
import inspect
import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from helpers import ROOT
from peft import LoraConfig
from tiny import BETAS, dit, lively, sd3, stable_diffusion, stable_diffusion_xl, unet, vae

from sag.diffusers import DiffusersDenoiser, LatentCondition, SchedulerSampler, SelfAttentionGuidancePipeline
from sag.diffusers.pipeline import POSITIONS
from sag.diffusion import sample
from sag.guidance import (
    BlurGuidance,
    ClassifierFreeGuidance,
    GuidanceRescale,
    GuidedDenoiser,
    Question,
    SelfAttentionGuidance,
    WeakGuidance,
)

STEPS = 4
WITHOUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
TEXT, NEGATIVE = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(3))
SLOW = pytest.mark.slow


def noise(rows=1, size=(8, 8), seed=4):
    return torch.randn(rows, 4, *size, generator=torch.Generator().manual_seed(seed))


def scheduler(name="DDIMScheduler", **more):
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in {**BETAS, **more}.items() if key in known})


def build(kind=StableDiffusionPipeline, name="DDIMScheduler", network=None, more=None, **options):
    pipe = kind(unet=network or unet(), vae=vae(), scheduler=scheduler(name, **options), text_encoder=None, tokenizer=None,
                **(WITHOUT if more is None else more))  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guide(pipe):
    return SelfAttentionGuidancePipeline.from_pipe(pipe)


def run(pipe, latents=None, cfg=7.5, text=TEXT, negative=NEGATIVE, steps=2, **more):
    """Call a pipeline without text encoder, for latents."""
    if latents is not None:
        height, width = latents.shape[2] * 2, latents.shape[3] * 2  # this autoencoder halves once
        more = {"latents": latents, "height": height, "width": width, **more}
    return pipe(
        prompt_embeds=text, negative_prompt_embeds=negative, guidance_scale=cfg, num_inference_steps=steps,
        output_type="latent", **{"generator": torch.Generator().manual_seed(0), **more},
    ).images  # fmt: skip


class Passes:
    """What a network is given, pass by pass."""

    def __init__(self, network):
        self.inputs = []

        def note(module, args, kwargs):
            self.inputs.append(next(iter([*args, *kwargs.values()])))

        network.register_forward_pre_hook(note, with_kwargs=True)

    @property
    def rows(self):
        return [len(x) for x in self.inputs]


# The library's own pipeline with SAG


@pytest.mark.parametrize(
    ("cfg", "size"),
    [
        (1.0, (16, 16)),
        (7.5, (12, 20)),
        pytest.param(1.0, (12, 20), marks=SLOW),
        pytest.param(7.5, (16, 16), marks=SLOW),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_it_is_the_pipeline_of_the_library(prediction, cfg, size):
    latents = noise(size=size)
    expected = run(build(StableDiffusionSAGPipeline, prediction_type=prediction), latents, cfg, sag_scale=0.75, steps=STEPS)
    pipe = build(prediction_type=prediction)
    assert (expected - run(pipe, latents, cfg, steps=STEPS)).abs().max() > 0.05  # guidance does something here
    torch.testing.assert_close(run(guide(pipe), latents, cfg, sag_scale=0.75, steps=STEPS), expected, rtol=0, atol=5e-5)


@SLOW
@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "name",
    ["DDPM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver", "LCM"],
)
def test_it_is_the_pipeline_of_the_library_with_other_schedulers(name, prediction, cfg):
    if (name, prediction) == ("PNDM", "sample"):
        pytest.skip("the library's PNDMScheduler takes no such prediction")
    reference = build(StableDiffusionSAGPipeline, f"{name}Scheduler", prediction_type=prediction)
    expected = run(reference, noise(), cfg, sag_scale=0.75, steps=STEPS)
    found = run(guide(build(name=f"{name}Scheduler", prediction_type=prediction)), noise(), cfg, sag_scale=0.75, steps=STEPS)
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=1e-4)  # latents reach 60 where the network knows no noise


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        pytest.param("LMSDiscreteScheduler", marks=SLOW),
        "HeunDiscreteScheduler",
        pytest.param("KDPM2DiscreteScheduler", marks=SLOW),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", pytest.param("v_prediction", marks=SLOW)])
def test_schedulers_that_the_library_refuses_are_guided_as_our_sampler_does(name, prediction):
    pipe = build(name=name, prediction_type=prediction)
    with pytest.raises(ValueError, match="does not support"):
        run(build(StableDiffusionSAGPipeline, name, prediction_type=prediction), noise(), sag_scale=0.75)
    found = run(guide(pipe), noise(), sag_scale=0.75, steps=STEPS)
    pipe.scheduler.set_timesteps(STEPS)
    denoiser = GuidedDenoiser(
        DiffusersDenoiser.of(pipe), [SelfAttentionGuidance(0.75, "middle", 1.0, 9), ClassifierFreeGuidance(6.5)]
    )
    given = noise() * pipe.scheduler.init_noise_sigma / (pipe.scheduler.sigmas[0] ** 2 + 1) ** 0.5
    condition = LatentCondition(text=TEXT, null_text=NEGATIVE)
    *_, last = sample(denoiser, SchedulerSampler(STEPS, name), given, condition, noise=lambda t: given)
    torch.testing.assert_close(found, last.x, rtol=3e-5, atol=2e-4)
    assert (found - run(pipe, noise(), steps=STEPS)).abs().max() > 0.05


def accepted():
    """Every scheduler of the library that StableDiffusionPipeline can sample with as it is."""
    names = {kind.name for kind in KarrasDiffusionSchedulers}
    names |= {"LCMScheduler", "TCDScheduler", "SASolverScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler",
              "EDMDPMSolverMultistepScheduler", "CogVideoXDDIMScheduler"}  # fmt: skip
    return sorted(names)


@SLOW
@pytest.mark.parametrize("name", accepted())
def test_every_scheduler_of_the_pipeline_runs(name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    pipe = build(name=name)
    plain, guided = run(pipe, noise(), steps=STEPS), run(guide(pipe), noise(), steps=STEPS)
    assert guided.isfinite().all()
    assert 1e-3 < (guided - plain).abs().mean() / plain.abs().mean() < 1
    half = run(guide(pipe), noise(), sag_scale=0.01, steps=STEPS)
    assert (half - plain).abs().mean() < (guided - plain).abs().mean() / 10  # the scale is a scale


@pytest.mark.parametrize(
    ("name", "reason"),
    [("CMStochasticIterativeScheduler", "does not say"), ("DDIMInverseScheduler", "goes from images"),
     ("IPNDMScheduler", "does not say how much signal")],
)  # fmt: skip
def test_schedulers_without_what_sag_needs_are_named(name, reason):
    with pytest.raises(ValueError, match=f"{name} {reason}"):
        run(guide(build(name=name)), noise())


# Without guidance


def test_scale_0_is_the_plain_pipeline(tmp_path):
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    xl, _ = stable_diffusion_xl(tmp_path)
    xl.set_progress_bar_config(disable=True)
    pipe = build()
    for plain, more in (
        (pipe, {"latents": noise()}),
        (build(StableDiffusionImg2ImgPipeline), {"image": image}),
        (build(StableDiffusionInpaintPipeline, network=unet(in_channels=9)), {"image": image, "mask_image": mask}),
        (xl, {"prompt": "a", "height": 32, "width": 32}),
    ):
        texts = {} if plain is xl else {"text": TEXT, "negative": NEGATIVE}
        calls = [{**texts, **more, **own} for own in ({}, {"sag_scale": 0}, {})]
        expected, found, after = (
            run(p, **{"text": None, "negative": None, **call})
            for p, call in zip((plain, guide(plain), plain), calls, strict=True)
        )
        assert torch.equal(found, expected)
        assert torch.equal(after, expected)


def test_the_pipeline_is_as_it_was_after_a_call():
    pipe = build()
    processors = pipe.unet.attn_processors
    expected = run(pipe, noise())
    guided = guide(pipe)
    before = dict(vars(pipe))
    assert not torch.equal(run(guided, noise()), expected)
    assert pipe.unet.attn_processors == processors
    assert {type(p) for p in processors.values()} == {AttnProcessor2_0}
    assert guided.unet is pipe.unet
    assert vars(pipe) == before
    assert torch.equal(run(pipe, noise()), expected)
    with pytest.raises(RuntimeError):
        run(guided, noise(), text=TEXT[..., :7], negative=NEGATIVE[..., :7])
    assert pipe.unet.attn_processors == processors
    assert guided.unet is pipe.unet


def test_it_is_a_pipeline_of_its_class(tmp_path):
    pipe, folder = stable_diffusion(tmp_path)
    guided = guide(pipe)
    assert isinstance(guided, StableDiffusionPipeline)
    assert isinstance(guided, SelfAttentionGuidancePipeline)
    assert guided.components == pipe.components
    assert type(guide(guided)) is type(guided) is type(guide(pipe))
    guided.save_pretrained(tmp_path / "saved")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")) is StableDiffusionPipeline
    loaded = SelfAttentionGuidancePipeline.from_pretrained(folder)
    assert isinstance(loaded, SelfAttentionGuidancePipeline)
    loaded.unet = unet(block_out_channels=(32, 32))
    assert loaded.unet is loaded.components["unet"]
    assert guided.to(torch.bfloat16).unet.dtype == pipe.unet.dtype == torch.bfloat16


# What it costs


@pytest.mark.parametrize(("cfg", "rows"), [(1.0, [1, 1]), (7.5, [2, 1])])
def test_a_step_costs_one_more_row(cfg, rows):
    pipe = build()
    passes = Passes(pipe.unet)
    run(guide(pipe), noise(), cfg)
    assert passes.rows == rows * 2
    passes.inputs.clear()
    run(guide(pipe), noise(), cfg, steps=4, interval=(0.0, 0.5))  # two of the four steps are above it
    assert sorted(passes.rows) == sorted(rows * 2 + rows[:1] * 2)


# Everything else that pipelines do


def test_arguments_by_position_are_those_of_the_library(tmp_path):
    pipe, _ = stable_diffusion(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    by_position = guide(pipe)("a", 32, 32, 2, 7.5, 0.5, "b", 1, 0.0, torch.Generator().manual_seed(0), None, None, None, None,
                              None, "np")  # fmt: skip
    by_name = guide(pipe)(prompt="a", height=32, width=32, num_inference_steps=2, sag_scale=0.5, negative_prompt="b",
                          generator=torch.Generator().manual_seed(0), output_type="np")  # fmt: skip
    assert isinstance(by_position, StableDiffusionPipelineOutput)
    assert (by_position.images == by_name.images).all()
    assert list(POSITIONS) == list(inspect.signature(StableDiffusionSAGPipeline.__call__).parameters)[1:]
    images, flagged = guide(pipe)("a", 32, 32, 1, output_type="latent", return_dict=False)
    assert images.shape == (1, 4, 16, 16)
    assert flagged is None


def several(pipe, **more):
    """A batch of three prompts, and each alone."""
    texts, negatives = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(5))
    latents = noise(3)
    rows = [(slice(i, i + 1)) for i in range(3)]
    together = run(pipe, latents, text=texts, negative=negatives, **{k: v() for k, v in more.items()})
    alone = [run(pipe, latents[r], text=texts[r], negative=negatives[r], **{k: v(r) for k, v in more.items()}) for r in rows]
    return together, torch.cat(alone)


def test_each_sample_of_a_batch_is_guided_by_its_own_prompt():
    together, alone = several(guide(build()))
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def controlnet(network):
    return lively(ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(4, 4)))


@pytest.mark.parametrize("guess", [False, True])
def test_controlnet_controls_both_passes(guess):
    network = unet()
    control = controlnet(network)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    pipe = build(StableDiffusionControlNetPipeline, network=network, more={**WITHOUT, "controlnet": control})
    pipe.control_image_processor.config.vae_scale_factor = 2
    together, alone = several(guide(pipe), image=lambda r=slice(None): images[r], guess_mode=lambda r=0: guess)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    passes = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append([len(x) for x in kwargs["down_block_additional_residuals"]]),
        with_kwargs=True,
    )
    run(guide(pipe), noise(), image=images[:1], guess_mode=guess)
    assert {n for rows in passes[::2] for n in rows} == {2}
    assert {n for rows in passes[1::2] for n in rows} == {1}


def test_inpainting_networks_are_told_mask_and_image_undisturbed():
    pipe = build(StableDiffusionInpaintPipeline, network=unet(in_channels=9))
    passes = Passes(pipe.unet)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    run(guide(pipe), image=image, mask_image=mask, height=32, width=32)
    for first, second in zip(passes.inputs[::2], passes.inputs[1::2], strict=True):
        assert torch.equal(first[:1, 4:], second[:, 4:])
        assert not torch.equal(first[:1, :4], second[:, :4])


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", pytest.param("UniPCMultistepScheduler", marks=SLOW)])
@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_images_are_guided_from_the_middle(kind, name):
    pipe = build(kind, name)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    more = {"image": image, "strength": 0.5, "steps": 4}
    if kind is StableDiffusionInpaintPipeline:
        more |= {"mask_image": torch.ones(1, 1, 32, 32), "height": 32, "width": 32}
    passes = Passes(pipe.unet)
    guided = run(guide(pipe), **more)
    assert passes.rows == [2, 1, 2, 1]
    assert (guided - run(pipe, **more)).abs().max() > 1e-3
    assert torch.equal(guided, run(guide(pipe), **more))
    # x_t has little noise there, and the difference is made with as much
    assert (run(guide(pipe), **more, sag_scale=0.01) - run(pipe, **more)).abs().max() < 0.05


def test_sdxl_has_its_own_layers(tmp_path):
    pipe, _ = stable_diffusion_xl(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    more = {"text": None, "negative": None, "prompt": "a", "negative_prompt": "b", "height": 32, "width": 32}
    plain, first, second = (run(p, **more, **own) for p, own in
                            ((pipe, {}), (guide(pipe), {}), (guide(pipe), {"layer": "middle.1"})))  # fmt: skip
    assert not torch.equal(plain, first)
    assert not torch.equal(first, second)
    image = torch.rand(1, 3, 32, 32)
    more = {**more, "image": image, "strength": 0.5}
    del more["height"], more["width"]
    images = StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    assert not torch.equal(run(images, **more), run(guide(images), **more))


@SLOW
@pytest.mark.parametrize(
    "name",
    ["StableDiffusionControlNetImg2Img", "StableDiffusionControlNetInpaint", "StableDiffusionXLInpaint",
     "StableDiffusionXLControlNet", "StableDiffusionXLControlNetImg2Img", "StableDiffusionXLControlNetInpaint",
     "LatentConsistencyModel", "LatentConsistencyModelImg2Img", "StableDiffusion3Img2Img"],
)  # fmt: skip
def test_relatives_are_guided(name, tmp_path):
    kind = getattr(diffusers, f"{name}Pipeline")
    base, _ = (stable_diffusion_xl if "XL" in name else stable_diffusion)(tmp_path)
    parts = {**base.components, **({"add_watermarker": False} if "XL" in name else {"requires_safety_checker": False})}
    more = {"prompt": "a"}
    if "ControlNet" in name:
        parts["controlnet"] = controlnet(base.unet)
    if "Consistency" in name:
        parts |= {"unet": unet(time_cond_proj_dim=8), "scheduler": scheduler("LCMScheduler")}
    if "3" in name:
        parts = dict.fromkeys(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
        parts |= {"transformer": sd3(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0), "vae": vae(shift_factor=0.1)}
        more = {"prompt_embeds": TEXT, "negative_prompt_embeds": NEGATIVE}
        more |= {"pooled_prompt_embeds": torch.ones(1, 32), "negative_pooled_prompt_embeds": torch.zeros(1, 32)}
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    for processor in ("image_processor", "control_image_processor", "mask_processor"):
        if hasattr(pipe, processor):
            getattr(pipe, processor).config.vae_scale_factor = 2
    known = inspect.signature(kind.__call__).parameters
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    given = {"image": image, "control_image": image, "mask_image": torch.ones(1, 1, 32, 32)}
    given |= {"height": 32, "width": 32, "num_inference_steps": 4}
    more |= {key: value for key, value in given.items() if key in known}

    def made(p):
        return p(**more, output_type="latent", generator=torch.Generator().manual_seed(0)).images

    plain = made(pipe)
    passes = Passes(pipe.transformer if "3" in name else pipe.unet)
    guided = made(guide(pipe))
    assert passes.rows == ([1, 1] if "Consistency" in name else [2, 1]) * (len(passes.rows) // 2)
    assert 0.01 < (guided - plain).abs().mean() / plain.abs().mean() < 1
    assert torch.equal(made(pipe), plain)


def test_dit_asks_about_the_label_first(tmp_path):
    """Its batch has the labels before the null class; its networks also predict a variance."""
    pipe = DiTPipeline(dit(num_embeds_ada_norm=1000, out_channels=8), vae(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    given = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )

    def images(p, **more):
        return torch.from_numpy(
            p([3, 7], num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0), **more).images
        )

    plain, given[:] = images(pipe), []
    guided = images(guide(pipe))
    assert given == [[3, 7, 1000, 1000], [1000, 1000]] * 2
    assert not torch.equal(plain, guided)
    given.clear()
    images(guide(pipe), branch="cond", guidance_scale=2.0)
    assert given == [[3, 7, 1000, 1000], [3, 7]] * 2
    given.clear()
    images(guide(pipe), guidance_scale=1.0)
    assert given == [[3, 7], [3, 7]] * 2


def test_sd3_is_guided_along_the_straight_path():
    pipe = StableDiffusion3Pipeline(sd3(), FlowMatchEulerDiscreteScheduler(shift=3.0), vae(), *[None] * 6)
    pipe.set_progress_bar_config(disable=True)
    pooled = {"pooled_prompt_embeds": torch.randn(1, 32), "negative_pooled_prompt_embeds": torch.randn(1, 32)}
    plain = run(pipe, noise(), **pooled)
    guided = run(guide(pipe), noise(), **pooled)
    assert not torch.equal(plain, guided)
    denoiser = GuidedDenoiser(
        DiffusersDenoiser.of(pipe), [SelfAttentionGuidance(0.75, "block.0", 1.0, 9), ClassifierFreeGuidance(6.5)]
    )
    condition = LatentCondition(text=TEXT, null_text=NEGATIVE, pooled=pooled["pooled_prompt_embeds"],
                                null_pooled=pooled["negative_pooled_prompt_embeds"])  # fmt: skip
    sampler = SchedulerSampler(2, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    *_, last = sample(denoiser, sampler, noise(), condition, noise=lambda t: noise())
    torch.testing.assert_close(guided, last.x, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="skip_guidance_layers is guidance"):
        run(guide(pipe), noise(), **pooled, skip_guidance_layers=[0])


def test_a_scale_that_the_network_is_told_goes_to_both_passes():
    """Networks of LCM are told guidance_scale, and there is one branch."""
    network = unet(time_cond_proj_dim=8)
    pipe = build(name="LCMScheduler", network=network)
    given = []
    network.register_forward_pre_hook(lambda m, args, kwargs: given.append(kwargs["timestep_cond"]), with_kwargs=True)
    assert not torch.equal(run(guide(pipe), noise()), run(pipe, noise()))
    assert [len(x) for x in given[:4]] == [1, 1, 1, 1]


def test_image_prompts_go_to_their_own_pass():
    """An IP-Adapter sits on cross-attention, where nothing of ours changes."""
    network = unet()
    adapters = [m for n, m in network.named_modules() if n.endswith("attn2")]
    for attn in adapters:
        attn.processor = IPAdapterAttnProcessor2_0(attn.to_q.out_features, 32, num_tokens=(3,), scale=1.0)
    network.encoder_hid_proj = torch.nn.Module()
    network.encoder_hid_proj.image_projection_layers = [None]
    network.encoder_hid_proj.forward = lambda embeds: embeds
    network.register_to_config(encoder_hid_dim_type="ip_image_proj")
    images = torch.randn(2, 1, 1, 3, 32, generator=torch.Generator().manual_seed(8))  # negative and positive
    pipe = build(network=network)

    def made(p, embeds, **more):
        return run(p, noise(), ip_adapter_image_embeds=[embeds[:, 0]], **more)

    guided = made(guide(pipe), images)
    assert not torch.equal(guided, made(pipe, images))
    assert not torch.equal(guided, made(guide(pipe), images.flip(0)))
    assert all(isinstance(attn.processor, IPAdapterAttnProcessor2_0) for attn in adapters)


def test_several_images_and_generators(tmp_path):
    pipe, _ = stable_diffusion(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    more = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    together = guide(pipe)(["a", "b"], num_images_per_prompt=2, negative_prompt=["c", "d"],
                           generator=[torch.Generator().manual_seed(i) for i in range(4)], **more).images  # fmt: skip
    alone = [guide(pipe)(prompt, negative_prompt=negative, generator=torch.Generator().manual_seed(i), **more).images
             for i, (prompt, negative) in enumerate([("a", "c")] * 2 + [("b", "d")] * 2)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=5e-5)
    pipe.vae.enable_slicing()
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    sliced = guide(pipe)(["a"] * 2, generator=generators, negative_prompt=["c"] * 2, **more)
    torch.testing.assert_close(sliced.images, together[:2], rtol=0, atol=5e-5)
    pipe.vae.enable_tiling()
    assert guide(pipe)("a", **more).images.isfinite().all()


def test_callbacks_see_and_stop_the_guided_pipeline():
    pipe = build()
    guided, seen = guide(pipe), []

    def stop(own, step, timestep, tensors):
        seen.append((own, step, tensors["latents"].clone()))
        own._interrupt = step == 1
        return {}

    stopped = run(guided, noise(), steps=4, callback_on_step_end=stop)
    assert [step for _, step, _ in seen] == [0, 1]
    assert all(own is guided for own, _, _ in seen)
    assert torch.equal(stopped, seen[1][2])


def test_callbacks_may_switch_classifier_free_guidance_off():
    pipe = build()
    passes = Passes(pipe.unet)

    def off(own, step, timestep, tensors):
        own._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}

    run(guide(pipe), noise(), callback_on_step_end=off, steps=4, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert passes.rows == [2, 1, 1, 1, 1, 1, 1, 1]


def test_a_callback_may_call_the_same_pipeline():
    pipe = build()
    guided, inner = guide(pipe), []
    expected = run(guided, noise())

    def again(own, step, timestep, tensors):
        if step == 0 and not inner:
            inner.append(None)
            scheduler, own.scheduler = own.scheduler, copy.deepcopy(own.scheduler)
            inner[0] = run(own, noise())
            own.scheduler = scheduler
            own._guidance_scale = 7.5
        return {}

    found = run(guided, noise(), callback_on_step_end=again)
    assert torch.equal(inner[0], expected)
    assert torch.equal(found, expected)


def test_pipelines_that_share_a_network_run_at_once():
    pipe = build()
    pipes = [guide(pipe) for _ in range(3)]
    for guided in pipes:
        guided.scheduler = copy.deepcopy(pipe.scheduler)
    expected = [run(p, noise(seed=i)) for i, p in enumerate(pipes)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda i: run(pipes[i], noise(seed=i), steps=2), range(3)))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_the_old_callback_is_called():
    seen = []
    more = {"callback": lambda step, t, latents: seen.append((step, int(t))), "callback_steps": 2, "steps": 4}
    run(guide(build()), noise(), **more)
    ours, seen[:] = list(seen), []
    run(build(StableDiffusionSAGPipeline), noise(), **more)
    assert ours == seen
    assert len(seen) == 2


def test_custom_timesteps_and_rescale_are_the_pipelines():
    for name, more in (
        ("EulerDiscreteScheduler", {"sigmas": [10.0, 3.0, 1.0, 0.0]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 500, 100]}),
        ("DDIMScheduler", {"guidance_rescale": 0.7, "eta": 0.5}),
    ):
        pipe = build(name=name)
        plain, guided = run(pipe, noise(), **more), run(guide(pipe), noise(), **more)
        assert 0 < (guided - plain).abs().mean() < plain.abs().mean()


def test_bfloat16_stays_near_float32():
    expected = run(guide(build(prediction_type="v_prediction")), noise())
    pipe = build(prediction_type="v_prediction").to(torch.bfloat16)
    rows = {"text": TEXT.bfloat16(), "negative": NEGATIVE.bfloat16()}
    found = run(guide(pipe), noise().bfloat16(), **rows)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_offloading_works_again_and_again(tmp_path):
    """Hooks are set on the real network again after each call. The device of this test is the CPU as well."""
    pipe, _ = stable_diffusion(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    more = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}

    def images(p):
        return p("a", generator=torch.Generator().manual_seed(0), **more).images

    expected = images(guide(pipe))
    pipe.enable_model_cpu_offload(device="cpu")
    guided = guide(pipe)
    for _ in range(2):
        assert torch.equal(images(guided), expected)
        assert len(guided._all_hooks) == 3  # text encoder, U-Net, autoencoder
        assert hasattr(pipe.unet, "_hf_hook")
    assert not torch.equal(images(pipe), expected)


@SLOW
def test_a_compiled_network_is_compiled_once():
    pipe = build()
    expected = run(guide(pipe), noise())
    pipe.unet.compile()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    guided = guide(pipe)
    graphs = []
    for _ in range(2):
        torch.testing.assert_close(run(guided, noise()), expected, rtol=0, atol=2e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == 2  # with both prompts, and the weaker question
    pipe.unet = torch.compile(unet())
    torch.testing.assert_close(run(guide(pipe), noise()), expected, rtol=0, atol=2e-4)


# Techniques


class Uniform(WeakGuidance):
    """A technique that replaces attention, with an input of its own."""

    def question(self, state):
        return Question(state.x_t, state.condition(self.branch), attend={"middle": lambda q, k, v, size: v})


def test_any_technique_guides():
    pipe = build()
    passes = Passes(pipe.unet)
    guided = run(guide(pipe), noise(), guidance=[Uniform(1.0, (0, 1))])
    assert passes.rows == [2, 1] * 2
    assert (guided - run(pipe, noise())).abs().max() > 0.01
    assert torch.equal(passes.inputs[0][:1], passes.inputs[1])
    both = run(guide(pipe), noise(), guidance=["sag", "blur"])
    assert torch.equal(both, run(guide(pipe), noise(), guidance=["sag", BlurGuidance(0.75, 1.0, 9)]))
    assert not torch.equal(both, run(guide(pipe), noise()))
    everywhere = run(guide(pipe), noise(), mask="global")
    blurred = run(guide(pipe), noise(), guidance="blur")
    torch.testing.assert_close(everywhere, blurred, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "knob",
    [{"layer": "down.0.0"}, {"blur_sigma": 3.0}, {"blur_kernel": 3}, {"threshold": 1.1}, {"mask": "random"}, {"branch": "cond"},
     {"sag_scale": lambda time: time}, {"interval": (0.5, 1.0)}],
)  # fmt: skip
def test_every_knob_does_something(knob):
    pipe = build()
    assert not torch.equal(run(guide(pipe), noise(), **knob), run(guide(pipe), noise()))
    assert torch.equal(run(guide(pipe), noise(), **knob), run(guide(pipe), noise(), **knob))


def test_the_space_of_the_difference_matters_unless_eps_is_predicted():
    for prediction, same in (("epsilon", True), ("v_prediction", False), ("sample", False)):
        pipe = build(prediction_type=prediction)
        output, eps = (run(guide(pipe), noise(), delta_space=space) for space in ("output", "eps"))
        assert torch.allclose(output, eps, atol=1e-4) == same
        denoiser = DiffusersDenoiser.of(pipe, delta_space="eps")
        denoiser = GuidedDenoiser(denoiser, [SelfAttentionGuidance(0.75, "middle", 1.0, 9), ClassifierFreeGuidance(6.5)])
        *_, last = sample(denoiser, SchedulerSampler(2), noise(), LatentCondition(text=TEXT, null_text=NEGATIVE),
                          noise=lambda t: noise())  # fmt: skip
        torch.testing.assert_close(eps, last.x, rtol=1e-5, atol=2e-4)


# Bad input


def test_what_cannot_be_guided_is_named():
    with pytest.raises(ValueError, match="FluxPipeline is not known"):
        guide(_with(FluxPipeline, transformer=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="StableDiffusionPAGPipeline is not known"):
        guide(_with(StableDiffusionPAGPipeline, unet=unet()))
    with pytest.raises(ValueError, match="neither a unet nor a transformer"):
        guide(object())
    network = unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None)
    with pytest.raises(ValueError, match="UNet2DConditionModel has no self-attention"):
        guide(build(network=network))


def _with(kind, **parts):
    pipe = kind.__new__(kind)
    pipe.__dict__.update(parts)
    return pipe


def test_other_loops_are_refused_when_they_ask():
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=vae(), text_encoder=None, tokenizer=None, unet=unet(in_channels=8), scheduler=scheduler(), **WITHOUT
    )
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="StableDiffusionInstructPix2PixPipeline does not ask"):
        run(guide(pipe), image=torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"layer": "middle.7"}, "middle.7.*down.0.0"),
        ({"guidance_scal": 2}, "no argument 'guidance_scal'; did you mean guidance_scale"),
        ({"blur_sigm": 2}, "did you mean blur_sigma"),
        ({"strength": 2}, "no argument 'strength'"),
        ({"guidance": ["pagg"]}, "unknown guidance 'pagg'"),
        ({"guidance": [Uniform(1.0, (0, 1))], "sag_scale": 1.0}, "guidance has neither"),
        ({"guidance": ["cfg"]}, "its own argument guidance_scale"),
        ({"guidance": [ClassifierFreeGuidance(1.0)]}, "its own argument guidance_scale"),
        ({"callback": print, "callback_on_step_end": print}, "callback cannot be used here"),
        ({"callback": print, "callback_steps": 0}, "callback_steps must be"),
        ({"mask": "all"}, "unknown mask"),
        ({"blur_kernel": 41}, "blur_kernel of 41 needs images"),
        ({"delta_space": "x"}, "unknown delta_space"),
    ],
)
def test_bad_arguments_are_named(more, message):
    with pytest.raises(ValueError, match=message):
        run(guide(build()), noise(), **more)


def test_bad_positions_are_named():
    guided = guide(build())
    with pytest.raises(ValueError, match="prompt is given by position and by name"):
        guided("a", prompt="a")
    with pytest.raises(ValueError, match="sag_scale is given by position and by name"):
        guided("a", 32, 32, 2, 1.0, 0.5, sag_scale=1.0)
    with pytest.raises(ValueError, match="takes 1 arguments by position"):
        guide(build(StableDiffusionImg2ImgPipeline))("a", None)


def test_nothing_warns_of_requests(caplog):
    pipe = build()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        run(guide(pipe), noise())
    assert "sag" not in caplog.text


def test_a_transform_changes_what_guidance_adds():
    pipe = build()
    plain, guided = (run(guide(pipe), noise(), guidance=g) for g in (["sag"], ["sag", GuidanceRescale(1.0)]))
    assert not torch.equal(plain, guided)
    assert guided.isfinite().all()


# The code of the pages


def test_the_examples_run(tmp_path):
    stable_diffusion(tmp_path / "sd15")
    xl, _ = stable_diffusion_xl(tmp_path / "sdxl")
    section = (ROOT / "docs/latent.md").read_text().split("### In a pipeline of diffusers")[1].split("### Schedulers")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    blocks += [b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "from_pipe" in b]
    assert len(blocks) == 4
    names = {"__name__": "docs"}
    for block in blocks:
        small = block.replace("num_inference_steps=30, ", "").replace(
            "sag_scale=0.75)", "sag_scale=0.75, num_inference_steps=2)"
        )
        for folder in ("sd15", "sdxl"):
            small = small.replace(f"/models/{folder}", str(tmp_path / folder / "model"))
        exec(small.replace('output="images"', 'output="images", num_inference_steps=2'), names)
    assert len(names["images"]) == 1

    more = {"prompt": "a", "negative_prompt": "b", "height": 32, "width": 32, "num_inference_steps": STEPS,
            "output_type": "latent", "latents": noise(size=(16, 16))}  # fmt: skip
    expected = guide(xl)(**more, guidance_scale=7.5).images
    torch.testing.assert_close(names["modular"](**more, output="images"), expected, rtol=1e-5, atol=2e-4)
    assert (expected - xl(**more, guidance_scale=7.5).images).abs().max() > 0.1


@pytest.mark.slow
def test_a_lora_of_the_network_works_and_its_scale_too(tmp_path):
    pipe, _ = stable_diffusion(tmp_path)
    guided, x = guide(pipe), noise(size=(16, 16))

    def images(pipe, **more):
        return pipe("a fox", latents=x, num_inference_steps=2, output_type="latent", guidance_scale=3.0, **more).images

    without = images(guided)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    assert (images(guided) - without).abs().max() > 0.01
    assert torch.equal(images(guided, cross_attention_kwargs={"scale": 0.0}), without)
    assert torch.equal(images(guided, sag_scale=0), images(pipe))


def test_the_arguments_are_those_of_the_library_s_pipeline_with_sag():
    *expected, _ = inspect.signature(StableDiffusionSAGPipeline.__call__).parameters  # it has no further names at the end
    listed = inspect.signature(guide(build()).__call__).parameters
    assert list(listed)[:20] == expected[1:]
    assert {"clip_skip", "callback_on_step_end", "guidance", "layer"} < set(listed)
    assert listed["sag_scale"].default == 0.75
