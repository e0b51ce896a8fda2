"""Tiny networks and pipelines of the library diffusers with random weights."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def lively(network):
    """Replace the weights that start at zero, so that every layer does something."""
    for parameter in network.parameters():
        if parameter.detach().abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def unet(**more):
    torch.manual_seed(0)
    settings = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32,
        "attention_head_dim": 4, "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return lively(UNet2DConditionModel(**{**settings, **more}))


def dit(**more):
    torch.manual_seed(0)
    settings = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
                "sample_size": 16, "patch_size": 2, "num_embeds_ada_norm": 10}  # fmt: skip
    return lively(DiTTransformer2DModel(**{**settings, **more}))


def sd3(**more):
    torch.manual_seed(0)
    settings = {"sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
                "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32,
                "pooled_projection_dim": 32, "pos_embed_max_size": 32, "dual_attention_layers": (0,),
                "qk_norm": "rms_norm"}  # fmt: skip
    return lively(SD3Transformer2DModel(**{**settings, **more}))


def flux(**more):
    torch.manual_seed(0)
    settings = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
                "axes_dims_rope": (4, 4, 8)}  # fmt: skip
    return lively(FluxTransformer2DModel(**{**settings, **more}))


def vae(**more):
    torch.manual_seed(0)
    settings = {"block_out_channels": (16, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "latent_channels": 4,
                "sample_size": 32}  # fmt: skip
    return lively(AutoencoderKL(**{**settings, **more}))


def tokenizer(folder):
    """A tokenizer that knows the letters."""
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=8)


def text_encoder(projected=False):
    torch.manual_seed(0)
    config = CLIPTextConfig(vocab_size=54, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                            max_position_embeddings=8, projection_dim=32, bos_token_id=0, eos_token_id=1)  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}


def stable_diffusion(folder, **more):
    """A pipeline like Stable Diffusion's, and the folder that holds it."""
    words = tokenizer(folder / "words")
    pipeline = StableDiffusionPipeline(
        vae(), text_encoder(), words, unet(**more), DDIMScheduler(**BETAS), None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "model")
    return pipeline, folder / "model"


def xl_unet():
    return unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
                cross_attention_dim=64, transformer_layers_per_block=(2, 2))  # fmt: skip


def stable_diffusion_xl(folder):
    words = tokenizer(folder / "words")
    pipeline = StableDiffusionXLPipeline(
        vae(), text_encoder(), text_encoder(projected=True), words, words, xl_unet(), EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), add_watermarker=False
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return pipeline, folder / "model"


def dit_pipeline(folder):
    pipeline = DiTPipeline(dit(out_channels=8), vae(), DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(folder / "model")
    return pipeline, folder / "model"
