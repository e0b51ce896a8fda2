"""ADM's classifier of noisy images: the first half of the UNet and one of four pools (arXiv:2105.05233, section 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from sag.flags import Flags, read_classifier_flags
from sag.models.attention import AttentionPool2d
from sag.models.layers import GroupNorm32, timestep_embedding
from sag.models.unet import Trunk, memory_format, run_block, set_body_dtype

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


class Classifier(Trunk):
    """Predicts class logits from a noisy image and its training step.

    Args:
        image_size: Height and width of the images in pixels.
        in_channels: Channels of the images.
        model_channels: Base width, which `channel_mult` multiplies.
        num_classes: Number of classes.
        num_res_blocks: Residual blocks per level.
        attention_resolutions: Heights in pixels of the feature maps that have attention, such as (32, 16, 8).
        channel_mult: One factor of the base width per level; fractions are allowed.
        pool: "attention" (as in CLIP), "adaptive" (the mean), or "spatial" or "spatial_v2" (the means of all blocks, then an
            MLP).
        num_head_channels: Channels per attention head; 64 in all published classifiers.
        use_scale_shift_norm: See `ResBlock`.
        resblock_updown: Whether residual blocks change the resolution, instead of separate layers.

    Raises:
        ValueError: If the pool is unknown, the image size cannot be halved often enough, or channels do not split into heads.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        model_channels: int,
        num_classes: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[float],
        pool: str = "attention",
        num_head_channels: int = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_channels=in_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            dropout=0.0,
            num_heads=1,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=False,
        )
        if pool not in POOLS:
            raise ValueError(f"unknown classifier pool {pool!r}; expected one of {', '.join(POOLS)}")
        self.num_classes = num_classes
        self.pool = pool
        features = sum(self.skips) + self.width
        self.out = {
            "attention": lambda: nn.Sequential(
                GroupNorm32(self.width),
                nn.SiLU(),
                AttentionPool2d(self.lowest_resolution, self.width, num_head_channels, num_classes),
            ),
            "adaptive": lambda: nn.Sequential(
                GroupNorm32(self.width),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d((1, 1)),
                nn.Conv2d(self.width, num_classes, 1),
                nn.Flatten(),
            ),
            "spatial": lambda: nn.Sequential(nn.Linear(features, 2048), nn.ReLU(), nn.Linear(2048, num_classes)),
            "spatial_v2": lambda: nn.Sequential(
                nn.Linear(features, 2048), GroupNorm32(2048), nn.SiLU(), nn.Linear(2048, num_classes)
            ),
        }[pool]()
        self.set_precision(torch.float32)

    @classmethod
    def from_flags(cls, flags: Flags) -> "Classifier":
        """Build a classifier from guided-diffusion's classifier flags.

        Args:
            flags: Values by flag name. Missing flags take guided-diffusion's defaults.

        Raises:
            ValueError: If a flag is unknown, a value has the wrong type, or the constructor rejects the values.
        """
        return cls(**read_classifier_flags(flags))

    def set_precision(self, dtype: torch.dtype) -> None:
        """Run the blocks in `dtype`. Norms, softmax, embeddings and the pool stay in float32."""
        self.dtype = dtype
        set_body_dtype([self.input_blocks, self.middle_block], dtype)

    @override
    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """Classify noisy images.

        Args:
            x: (N, C, H, W) float32, images in [-1, 1] plus noise, of the classifier's own size.
            tau: (N,) training steps, any real dtype.

        Returns:
            The logits, (N, num_classes) float32.

        Raises:
            ValueError: If the images do not have the classifier's size and number of channels.
        """
        wanted = (self.in_channels, self.image_size, self.image_size)
        if x.shape[1:] != wanted:
            raise ValueError(f"this classifier takes images of shape {wanted}, got {tuple(x.shape[1:])}")
        emb = self.time_embed(timestep_embedding(tau, self.model_channels))  # (N, 4 model_channels)
        h = x.to(self.dtype, memory_format=memory_format(self.dtype))
        spatial = self.pool.startswith("spatial")
        means = []  # one (N, C) per block
        for i, block in enumerate([*self.input_blocks, self.middle_block]):
            h = run_block(block, f"input.{i}", h, emb)  # (N, C, h, w)
            if spatial:
                means.append(h.float().mean(dim=(2, 3)))
        logits: Tensor = self.out(torch.cat(means, dim=1) if spatial else h.float())
        return logits
