"""Feature networks, which compute from images the features that metrics need."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from evaluations.precise import float32_products


class Features(NamedTuple):
    """The features of n images.

    Attributes:
        pool: (n, D).
        spatial: (n, S), for sFID, or None.
        logits: (n, classes), for the Inception Score, or None.
    """

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(ABC, nn.Module):
    """A frozen feature network in float32.

    Attributes:
        id: Identifies the network, its weights and its preprocessing. Scores are comparable only if it is equal.
        channels: Number of channels of its images.
        notes: Warnings about its scores.
        classes: Number of classes of its logits, if these are the classes of the samples; otherwise None.
    """

    id: str
    channels: int = 3
    notes: tuple[str, ...] = ()
    classes: int | None = None

    @abstractmethod
    def features(self, x: Tensor) -> Features:
        """Compute the features of images (n, channels, H, W), float32 with values from 0 to 255."""

    @override
    @torch.inference_mode()
    def forward(self, images: Tensor) -> Features:
        """Compute the features of images.

        Args:
            images: (n, C, H, W) uint8. A single channel is repeated.

        Returns:
            The features, float32 on the device of the network.

        Raises:
            ValueError: If the images have the wrong number of channels, or the network returns features of the wrong shape.
        """
        if images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"{type(self).__name__} takes images of 1 or {self.channels} channels, got {images.shape[1]}; for others use "
                "your own network with extractor=module, and one number per channel in extractor.mean and extractor.std"
            )
        parameter = next(self.parameters(), None)
        x = images.to(images.device if parameter is None else parameter.device).float()
        with float32_products():
            found = self.features(x.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else x)
        for name, value in zip(found._fields, found, strict=True):
            if value is not None and value.shape[:-1] != (len(images),):
                raise ValueError(
                    f"{type(self).__name__} returned {name} of shape {tuple(value.shape)} for {len(images)} images; "
                    "expected (images, features)"
                )
        spatial, logits = (None if value is None else value.float() for value in found[1:])
        return Features(found.pool.float(), spatial, logits)


class ModuleExtractor(Extractor):
    """An extractor made from any network.

    The network maps images (n, channels, H, W) to features (n, D), to a pair (features, logits), or to a mapping with the keys
    pool, spatial and logits.

    Args:
        name: Name of the network, for `id`.
        network: The network.
        size: Images are resized to size x size (bicubic, antialiased); None leaves them as they are.
        mean: One number per channel. The network is given (value / 255 - mean) / std.
        std: One number per channel; 1/255 gives the network values from 0 to 255.

    Raises:
        ValueError: If mean and std have different lengths. `features` raises it if the network returns something else.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        size: int | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; expected one number per channel in each")
        self.network, self.channels = network.eval(), len(mean)
        for parameter in network.parameters():  # TorchScript modules have no requires_grad_
            parameter.requires_grad_(False)
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        settings = repr((size, self.mean, self.std)).encode()
        self.id = f"{name}-{sha256(settings + state_hash(network).encode()).hexdigest()[:8]}"

    @override
    def features(self, x: Tensor) -> Features:
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        found = self.network((x / 255 - mean) / std)
        if isinstance(found, Tensor):
            return Features(found)
        if isinstance(found, Mapping) and "pool" in found and set(found) <= set(Features._fields):
            return Features(**found)
        if isinstance(found, (tuple, list)) and len(found) == 2:
            return Features(found[0], None, found[1])
        raise ValueError(
            f"the network returned {type(found).__name__}; expected features (n, D), (features, logits), "
            "or a mapping of pool, spatial and logits"
        )


def load_torchscript(path: str) -> nn.Module:
    """Load a TorchScript network on the CPU. TorchScript runs code, so load it only from sources that you trust.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not TorchScript.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no TorchScript file at {path!r}")
    try:
        network: nn.Module = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TorchScript file ({str(error).splitlines()[0]})") from error
    return network


def state_hash(network: nn.Module) -> str:
    """Return a hash of the names and values of all weights."""
    digest = sha256(type(network).__name__.encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
