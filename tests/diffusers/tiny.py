"""Tiny networks of the library diffusers with random weights."""

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel


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
