"""Networks of the library as denoisers: without guidance they give what the library's own pipelines give."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
)
from tiny import BETAS, dit, flux, sd3, stable_diffusion, stable_diffusion_xl, unet, vae

from sag.diffusers import DiffusersDenoiser, LatentCondition, SchedulerSampler
from sag.diffusers.autoencoder import LibraryAutoencoder
from sag.diffusion import DDIM, DDPM, Condition, sample
from sag.guidance import ClassifierFreeGuidance, GuidedDenoiser, SelfAttentionGuidance

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
TEXT, NEGATIVE = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(3))
POOLED, NULL_POOLED = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(5))
CPU = torch.device("cpu")


def noise(*shape, seed=4):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def final(denoiser, sampler, x, condition, *guidance):
    *_, last = sample(GuidedDenoiser(denoiser, guidance), sampler, x, condition, noise=lambda t: noise(*x.shape, seed=t))
    return last.x


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain(**more):
    return quiet(StableDiffusionPipeline(vae(), unet=unet(**more), scheduler=DDIMScheduler(**BETAS), **NO_TEXT, **NO_CHECKER))


def test_prompts_are_encoded_as_by_stable_diffusion(tmp_path):
    pipeline, _ = stable_diffusion(tmp_path)
    x = noise(1, 4, 16, 12)
    expected = quiet(pipeline)(
        "a cat", 32, 24, 3, guidance_scale=5.0, negative_prompt="dog", latents=x, output_type="latent"
    ).images
    denoiser = DiffusersDenoiser.of(pipeline, negative_prompt="dog")
    condition = denoiser.condition(texts=["a cat"])
    found = final(denoiser, SchedulerSampler(3), x, condition, ClassifierFreeGuidance(4.0))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    images = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(denoiser.decode(found), images, rtol=1e-4, atol=1e-4)
    assert denoiser.takes_text


def test_prompts_are_encoded_as_by_sdxl(tmp_path):
    """With no negative prompt, SDXL moves away from zeros."""
    pipeline, _ = stable_diffusion_xl(tmp_path)
    x = noise(1, 4, 16, 12)
    pipeline.scheduler.set_timesteps(3)
    scale = pipeline.scheduler.init_noise_sigma / (pipeline.scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for negative in (None, "dog"):
        expected = quiet(pipeline)(
            "a cat", height=32, width=24, num_inference_steps=3, guidance_scale=5.0, negative_prompt=negative, latents=x,
            output_type="latent",
        ).images  # fmt: skip
        denoiser = DiffusersDenoiser.of(pipeline, negative_prompt=negative)
        condition = denoiser.condition(texts=["a cat"])
        found = final(
            denoiser, SchedulerSampler(3, "EulerDiscreteScheduler"), x * scale, condition, ClassifierFreeGuidance(4.0)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sd3_is_that_of_its_pipeline():
    parts = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = quiet(StableDiffusion3Pipeline(transformer=sd3(), vae=vae(), scheduler=scheduler, **parts))
    x = noise(1, 4, 16, 12)
    expected = pipeline(
        prompt_embeds=TEXT, negative_prompt_embeds=NEGATIVE, pooled_prompt_embeds=POOLED, latents=x, output_type="latent",
        negative_pooled_prompt_embeds=NULL_POOLED, height=32, width=24, num_inference_steps=3, guidance_scale=5.0,
    ).images  # fmt: skip
    denoiser = DiffusersDenoiser.of(pipeline)
    assert denoiser.diffusion.prediction == "flow"
    condition = LatentCondition(text=TEXT, null_text=NEGATIVE, pooled=POOLED, null_pooled=NULL_POOLED)
    sampler = SchedulerSampler(3, "FlowMatchEulerDiscreteScheduler")
    found = final(denoiser, sampler, x, condition, ClassifierFreeGuidance(4.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    guided = final(denoiser, sampler, x, condition, SelfAttentionGuidance(0.5, "block.0", 1.0, 5))
    assert (guided - final(denoiser, sampler, x, condition)).abs().max() > 1e-3


@pytest.mark.parametrize("distilled", [False, True])
def test_flux_is_that_of_its_pipeline(distilled):
    parts = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2")}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    network = flux(guidance_embeds=distilled)
    pipeline = quiet(FluxPipeline(scheduler, vae(), transformer=network, **parts))
    x = noise(1, 4, 16, 12)
    packed = pipeline._pack_latents(x, 1, 4, 16, 12)
    mu = 0.5 + (48 - 256) * (1.15 - 0.5) / (4096 - 256)  # as the pipeline, for 8x6 tokens
    expected = pipeline(
        prompt_embeds=TEXT, pooled_prompt_embeds=POOLED, latents=packed, height=32, width=24, num_inference_steps=3,
        guidance_scale=2.0, output_type="latent",
    ).images  # fmt: skip
    denoiser = replace(DiffusersDenoiser.of(pipeline), embedded_guidance=2.0)
    condition = LatentCondition(text=TEXT, pooled=POOLED)
    sampler = SchedulerSampler(3, "FlowMatchEulerDiscreteScheduler", {"mu": mu})  # by default, that of the model's own size
    found = final(denoiser, sampler, x, condition)
    torch.testing.assert_close(pipeline._pack_latents(found, 1, 4, 16, 12), expected, rtol=1e-4, atol=1e-4)
    assert denoiser.shape == (4, 128, 128)
    own = SchedulerSampler(3, "FlowMatchEulerDiscreteScheduler").respace(denoiser).diffusion.schedule
    torch.testing.assert_close(float(own.noise[0]), 1 / (1 + 2 / math.exp(1.15)))


def test_dit_is_that_of_its_pipeline():
    """The library's own pipeline has ImageNet's null class built in."""
    pipeline = quiet(DiTPipeline(dit(out_channels=8, num_embeds_ada_norm=1000), vae(), DDIMScheduler(clip_sample=False)))
    x = noise(1, 4, 16, 16)
    denoiser = DiffusersDenoiser.of(pipeline)
    assert (denoiser.num_classes, denoiser.null_label, denoiser.takes_text) == (1001, 1000, False)
    found = final(denoiser, SchedulerSampler(3), x, denoiser.condition(torch.tensor([7])), ClassifierFreeGuidance(3.0))
    generator = torch.Generator().manual_seed(4)
    images = pipeline([7], 4.0, generator, 3, output_type="pt").images
    expected = (denoiser.decode(found) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(expected, torch.as_tensor(images), rtol=0, atol=1e-3)


def test_the_learned_variance_of_dit_is_used():
    denoiser = DiffusersDenoiser.of(DiTPipeline(dit(out_channels=8), vae(), DDIMScheduler(clip_sample=False)))
    prediction = denoiser(noise(2, 4, 16, 16), 500, denoiser.condition(torch.tensor([1, 2])))
    lower, upper = (
        denoiser.diffusion.schedule.posterior_log_variance[500],
        torch.log(torch.tensor(denoiser.diffusion.schedule.betas)),
    )
    assert prediction.log_variance.std() > 0
    assert abs(float(prediction.log_variance.mean()) - float(lower + upper[500]) / 2) < 1
    assert torch.isfinite(final(denoiser, DDPM(3), noise(2, 4, 16, 16), denoiser.condition(torch.tensor([1, 2])))).all()


def test_inpainting_with_nine_channels():
    pipeline = quiet(
        StableDiffusionInpaintPipeline(
            vae(), unet=unet(in_channels=9), scheduler=DDIMScheduler(**BETAS), **NO_TEXT, **NO_CHECKER
        )
    )
    denoiser = DiffusersDenoiser.of(pipeline)
    assert denoiser.shape == (4, 16, 16)
    image, mask = noise(1, 3, 32, 32).clamp(-1, 1), torch.zeros(1, 1, 32, 32)
    mask[:, :, 8:24, 8:24] = 1
    x = noise(1, 4, 16, 16)
    expected = pipeline(
        prompt_embeds=TEXT, negative_prompt_embeds=NEGATIVE, image=image / 2 + 0.5, mask_image=mask, height=32, width=32,
        num_inference_steps=3, guidance_scale=5.0, latents=x, generator=torch.Generator().manual_seed(0),
        output_type="latent", strength=1.0,
    ).images  # fmt: skip
    torch.manual_seed(0)
    posterior = pipeline.vae.encode(image * (mask < 0.5)).latent_dist
    masked = posterior.sample(torch.Generator().manual_seed(0)) * pipeline.vae.config.scaling_factor
    small = torch.nn.functional.interpolate(mask, (16, 16))
    condition = LatentCondition(text=TEXT, null_text=NEGATIVE, extra=torch.cat([small, masked], 1))
    found = final(denoiser, SchedulerSampler(3), x, condition, ClassifierFreeGuidance(4.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"takes 5 channels in addition to the latents .* and the condition has 0"):
        denoiser(x, 3, Condition(text=TEXT))


def test_a_controlnet_is_asked():
    network = unet()
    controlnet = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(8, 8)).eval()
    for name, parameter in controlnet.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    parts = {"unet": network, "controlnet": controlnet, "scheduler": DDIMScheduler(**BETAS), **NO_TEXT, **NO_CHECKER}
    pipeline = quiet(StableDiffusionControlNetPipeline(vae(), **parts))
    denoiser, x, image = DiffusersDenoiser.of(pipeline), noise(1, 4, 16, 16), noise(1, 3, 32, 32).sigmoid()
    expected = pipeline(
        image=image, prompt_embeds=TEXT, negative_prompt_embeds=NEGATIVE, height=32, width=32, num_inference_steps=3,
        guidance_scale=5.0, latents=x, output_type="latent", controlnet_conditioning_scale=0.5,
    ).images  # fmt: skip
    condition = LatentCondition(text=TEXT, null_text=NEGATIVE, control=image)
    found = final(replace(denoiser, control_scale=0.5), SchedulerSampler(3), x, condition, ClassifierFreeGuidance(4.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a ControlNet needs a condition with control"):
        denoiser(x, 3, Condition(text=TEXT))


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (5, 6)])
def test_a_batch_gives_what_single_samples_give(size):
    denoiser = DiffusersDenoiser.of(plain())
    x, text = noise(4, 4, *size), noise(4, 5, 32)
    kernel = 9 if min(size) > 4 else 5
    guidance = [SelfAttentionGuidance(0.75, "middle", 1.0, kernel), ClassifierFreeGuidance(4.0)]

    def run(rows):
        condition = LatentCondition(text=text[rows], null_text=NEGATIVE.expand(len(text[rows]), -1, -1))
        return final(denoiser, DDIM("ddim4"), x[rows], condition, *guidance)

    together = run(slice(0, 4))
    for i in range(4):
        torch.testing.assert_close(run(slice(i, i + 1)), together[i : i + 1], rtol=1e-4, atol=1e-4)


def test_questions_may_be_asked_in_one_batch():
    denoiser, x = DiffusersDenoiser.of(plain()), noise(2, 4, 16, 16)
    condition = LatentCondition(text=TEXT.repeat(2, 1, 1), null_text=NEGATIVE.repeat(2, 1, 1))
    guidance = [SelfAttentionGuidance(0.75, "middle", 1.0, 9), ClassifierFreeGuidance(4.0)]
    alone, together = (GuidedDenoiser(denoiser, guidance, batched=batched)(x, 500, condition).eps for batched in (False, True))
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


def test_half_precision_takes_and_gives_float32():
    """bfloat16 has 8 bits of mantissa."""
    x, condition = noise(1, 4, 16, 16), Condition(text=TEXT)
    exact = DiffusersDenoiser.of(plain())(x, 500, condition).eps
    pipeline = plain()
    pipeline.unet.to(torch.bfloat16)
    prediction = DiffusersDenoiser.of(pipeline)(x, 500, condition, capture=["middle"])
    assert prediction.eps.dtype == torch.float32
    assert prediction.attention["middle"].q.dtype == torch.bfloat16
    assert 0 < float((prediction.eps - exact).norm() / exact.norm()) < 0.05


def test_sizes():
    denoiser = DiffusersDenoiser.of(plain())
    assert denoiser.sample_size() == (16, 16)
    assert denoiser.sample_size([18, 26]) == (9, 13)
    transformer = DiffusersDenoiser.of(DiTPipeline(dit(), vae(), DDIMScheduler()))
    assert transformer.sample_size([24, 24]) == (12, 12)
    for model, size, message in (
        (denoiser, [17, 16], "both divisible by 2 here"),
        (transformer, [26, 26], "both divisible by 4 here"),
        (transformer, [24, 32], "size must be square"),
        (denoiser, [16], "size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample_size(size)


def test_classes_of_a_unet():
    denoiser = DiffusersDenoiser.of(plain(num_class_embeds=3))
    assert denoiser.num_classes == 3
    predictions = [denoiser(noise(1, 4, 16, 16), 500, Condition(torch.tensor([i]), TEXT)).eps for i in (0, 1)]
    assert not torch.equal(*predictions)


def test_latents_of_several_kinds_of_autoencoders():
    images = noise(2, 3, 32, 32).clamp(-1, 1)
    scaled = LibraryAutoencoder(vae(scaling_factor=0.5, shift_factor=0.25))
    normal = LibraryAutoencoder(vae(scaling_factor=1.0))
    torch.testing.assert_close(scaled.encode(images), (normal.encode(images) - 0.25) * 0.5)
    torch.testing.assert_close(scaled.decode(scaled.encode(images)), normal.decode(normal.encode(images)), rtol=1e-4, atol=1e-4)
    whitened = LibraryAutoencoder(vae(scaling_factor=0.5, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]))
    expected = (
        (normal.encode(images) - torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1)) / torch.arange(1.0, 5).view(4, 1, 1) / 2
    )
    torch.testing.assert_close(whitened.encode(images), expected)
    torch.testing.assert_close(
        whitened.decode(whitened.encode(images)), normal.decode(normal.encode(images)), rtol=1e-4, atol=1e-4
    )
    small = LibraryAutoencoder(AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                               num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)))  # fmt: skip
    assert small.decode(small.encode(images)).shape == images.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: d(x, 3), "this model needs texts"),
        (
            lambda d, x: d(x, 3, Condition(text=TEXT), capture=["nothing"]),
            "unknown attention layer 'nothing'; this network has: down",
        ),
        (lambda d, x: d(x, 3, Condition(text=TEXT.repeat(2, 1, 1))), "the condition has 2 rows"),
        (lambda d, x: d.condition(texts=["a"]), "this model takes no text"),
        (lambda d, x: d.condition(low_res=x), "enlarges no images"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(DiffusersDenoiser.of(plain()), noise(1, 4, 16, 16))


def test_more_that_does_not_fit():
    xl = unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80)
    pipeline = StableDiffusionPipeline(vae(), unet=xl, scheduler=DDIMScheduler(**BETAS), **NO_TEXT, **NO_CHECKER)
    with pytest.raises(ValueError, match="needs one embedding for each text"):
        DiffusersDenoiser.of(pipeline)(noise(1, 4, 16, 16), 3, Condition(text=TEXT))
    condition = LatentCondition(text=TEXT, pooled=POOLED, time_ids=torch.ones(1, 5))
    with pytest.raises(
        ValueError, match="is told 80 numbers of text and sizes, and the condition has 32 of text and 8 for each of 5"
    ):
        DiffusersDenoiser.of(pipeline)(noise(1, 4, 16, 16), 3, condition)
    with pytest.raises(ValueError, match="this model needs labels"):
        DiffusersDenoiser.of(DiTPipeline(dit(), vae(), DDIMScheduler()))(noise(1, 4, 16, 16), 3)
    without = plain()
    without.unet = UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                               layers_per_block=1, norm_num_groups=8)  # fmt: skip
    with pytest.raises(ValueError, match="UNet2DModel has no self-attention layers that guidance could read"):
        DiffusersDenoiser.of(without)
    odd = plain()
    odd.scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="prediction_type=score; expected one of epsilon"):
        DiffusersDenoiser.of(odd)
    denoiser = DiffusersDenoiser.of(plain())
    denoiser.network.set_default_attn_processor = None
    denoiser.network.mid_block.attentions[0].transformer_blocks[0].attn1.set_attention_slice(None)  # the library's own again
    with pytest.raises(ValueError, match="layer middle was not read"):
        denoiser(noise(1, 4, 16, 16), 3, Condition(text=TEXT), capture=["middle"])
