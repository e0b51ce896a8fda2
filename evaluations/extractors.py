"""Feature networks: images in, the features that the metrics are made of out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluations.precise import float32_products


class Features(NamedTuple):
    """Of n images: pool (n, D); spatial (n, S), for sFID, or None; logits (n, classes), for the Inception Score, or None."""

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(ABC, nn.Module):
    """A frozen feature network in float32. `id` names network, weights and preprocessing: other id, other numbers.

    channels: of the images that it takes. notes: what a reader of the scores must know of this extractor. classes: how many
    labels its logits are about, or None where they are not about the labels of the samples.
    """

    id: str
    channels: int = 3
    notes: tuple[str, ...] = ()
    classes: int | None = None

    @abstractmethod
    def features(self, x: Tensor) -> Features:
        """Features of images (n, channels, H, W), float32 with the values 0 to 255."""

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Features:
        """Features, float32 on the device of the network, of images (n, C, H, W) uint8; one channel counts as many equal ones.

        Raises:
            ValueError: neither one channel nor as many as it takes, or the network returned other than features (n, D).
        """
        if images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"{type(self).__name__} takes images of 1 or {self.channels} channels, got {images.shape[1]}; for others give "
                "your own network with extractor=module, and a number for each channel in extractor.mean and extractor.std"
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
    """Any network that maps images (n, channels, H, W) to features (n, D), to (features, logits), or to a mapping of pool,
    spatial, logits.

    size: images are resized to size x size (bicubic, antialiased); None leaves them as they are. mean, std: a number for each
    channel, of which a network gets (value / 255 - mean) / std; std = 1/255 hands it the values 0 to 255.
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
            raise ValueError(f"mean has {len(mean)} numbers and std {len(std)}; expected one of each for every channel")
        self.network, self.channels = network.eval(), len(mean)
        for parameter in network.parameters():  # TorchScript knows no requires_grad_
            parameter.requires_grad_(False)
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        settings = repr((size, self.mean, self.std)).encode()
        self.id = f"{name}-{sha256(settings + state_hash(network).encode()).hexdigest()[:8]}"

    def features(self, x: Tensor) -> Features:
        """See `Extractor.features`."""
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
    """A TorchScript network, on the CPU. TorchScript is a program: load it from sources you trust.

    Raises:
        FileNotFoundError, ValueError: no such file, or not TorchScript.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no TorchScript file at {path!r}")
    try:
        return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TorchScript file ({str(error).splitlines()[0]})") from error


def state_hash(network: nn.Module) -> str:
    """A hash of names and values of all weights."""
    digest = sha256(type(network).__name__.encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
