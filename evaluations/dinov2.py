"""DINOv2 vision transformers for FD-DINOv2 (Oquab et al., arXiv:2304.07193; Stein et al., arXiv:2306.04675).

torch-fidelity's DINOv2 extractor is not used, since it cannot reproduce the published numbers: it resizes bilinearly and
without antialiasing, as TensorFlow 1 does. It also accepts no file of weights, but runs code that torch.hub downloads.
"""

import pickle
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from evaluations.extractors import Extractor, Features

SIZE, PATCH = 224, 14
HEAD = 64  # channels per head in all published sizes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
WEIGHTS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"


class DinoV2(Extractor):
    """The normalised class token of a DINOv2 ViT-S/14, -B/14 or -L/14.

    Images are resized to 224 x 224 (bicubic, antialiased). Published FD-DINOv2 numbers use ViT-L/14.

    Args:
        weights: The authors' file. Its shapes determine the size of the network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has other weights.
    """

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        if weights is None or not Path(weights).is_file():
            missing = "needs weights" if weights is None else f"finds no weights at {weights!r}"
            raise FileNotFoundError(f"the dinov2 extractor {missing}: fetch {WEIGHTS} and set extractor.weights=its path")
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            dim = state["cls_token"].shape[2]
            depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
            state.pop("mask_token", None)  # used in training only
            with torch.device("meta"):
                self.network = VisionTransformer(dim, depth, state["pos_embed"].shape[1])
            self.network.load_state_dict(state, assign=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{weights} does not hold a DINOv2 ViT-S/14, -B/14 or -L/14 without registers; fetch {WEIGHTS}"
            ) from error
        self.float().eval().requires_grad_(False)
        self.id = f"dinov2-{dim}-{sha256(Path(weights).read_bytes()).hexdigest()[:8]}/bicubic-{SIZE}"

    @override
    def features(self, x: Tensor) -> Features:
        x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True) / 255
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        return Features(self.network((x - mean) / std))


class VisionTransformer(nn.Module):
    """A vision transformer with layer scale, with the state-dict names of DINOv2's files.

    `forward` maps images (n, 3, H, W), with H and W multiples of 14, to class tokens (n, dim).

    Args:
        dim: Width of the network.
        depth: Number of blocks.
        positions: Number of entries of pos_embed, 1 + side^2.
    """

    def __init__(self, dim: int, depth: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x)  # (n, dim, h, w)
        positions = self._positions(x.shape[2], x.shape[3])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)  # (n, 1 + h w, dim)
        x = x + positions
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens[:, 0]

    def _positions(self, h: int, w: int) -> Tensor:
        token, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        if (h, w) == (side, side):
            return self.pos_embed
        patches = patches.view(1, side, side, -1).permute(0, 3, 1, 2)
        # The authors scale by (h + 0.1) / side, so the positions are sampled by this factor and not by the sizes
        scale = (h + 0.1) / side, (w + 0.1) / side
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
        return torch.cat([token, patches.flatten(2).transpose(1, 2)], 1)


class Block(nn.Module):
    """A transformer block: attention and an MLP of four times the width, with layer norm before and layer scale after each.

    `forward` maps (n, tokens, dim) to the same shape.

    Args:
        dim: Width of the block.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(dim))}) for _ in range(2))

    @override
    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).view(n, tokens, 3, dim // HEAD, HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, 64)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        out: Tensor = x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return out
