"""The Inception network of 2015-12-05, which FID, sFID, IS, precision and recall use in ADM's evaluator."""

import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    BasicConv2d,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE_1,
    InceptionE_2,
)
from typing_extensions import override

from evaluations.extractors import Extractor, Features
from evaluations.resize import resize_tensorflow1
from sag.storage import fetch

URL = URL_INCEPTION_V3
SHA256 = "6726825d"  # the start of the sha256 of the published weights, as in their name
SIZE = 299
SPATIAL = 7  # number of channels of Mixed_6d.branch1x1 in sFID's features


class Inception(Extractor):
    """Inception with the blocks and weights of torch-fidelity, for images of any size.

    Features are pool (2048), spatial (17 x 17 x 7 in NHWC order) and logits (1008).

    Args:
        weights: A path, or "random" for scores that are only comparable with each other. By default, torch-fidelity's file in
            torch hub's cache ($TORCH_HOME), which is downloaded if it is missing.
        sha256: The required start of the file's hash; None accepts any file.

    Raises:
        FileNotFoundError: If there is no file at the path.
        OSError: If the download fails.
        ValueError: If the file has another hash, or is not an Inception network.
    """

    def __init__(self, weights: str | None = None, sha256: str | None = SHA256) -> None:
        super().__init__()
        with torch.device("meta"):
            self._build()
        if weights == "random":
            self.to_empty(device="cpu")
            _fill_randomly(self)
            name = "inception-random"
            self.notes = ("the Inception network has random weights: compare these scores only with each other",)
        else:
            state, digest = _read(inception_weights(weights), sha256)
            try:
                self.load_state_dict(state, assign=True)
            except RuntimeError as error:
                raise ValueError(f"{weights} does not hold torch-fidelity's Inception: {str(error).splitlines()[1]}") from error
            name = f"inception-2015-12-05-{digest[:8]}" if digest.startswith(SHA256) else f"inception-{digest[:8]}"
        self.id = f"{name}/tensorflow1-bilinear/nhwc"
        self.float().eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU, and as exact

    def _build(self) -> None:
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.MaxPool_1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.MaxPool_2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, channels_7x7=128)
        self.Mixed_6c = InceptionC(768, channels_7x7=160)
        self.Mixed_6d = InceptionC(768, channels_7x7=160)
        self.Mixed_6e = InceptionC(768, channels_7x7=192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE_1(1280)
        self.Mixed_7c = InceptionE_2(2048)
        self.fc = nn.Linear(2048, 1008)

    @override
    def features(self, x: Tensor) -> Features:
        x = (resize_tensorflow1(x, SIZE, SIZE) - 128) / 128  # (n, 3, 299, 299)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (n, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.MaxPool_1(x)))  # (n, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.MaxPool_2(x))))  # (n, 288, 35, 35)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (n, 768, 17, 17), branch1x1 first
        spatial = x[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)  # (n, 2023)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (n, 2048, 8, 8)
        pool = x.mean((2, 3))  # (n, 2048)
        return Features(pool, spatial, pool @ self.fc.weight.T)  # logits of the Inception Score have no bias


def _fill_randomly(network: nn.Module) -> None:
    """Initialise as in arXiv:1502.01852 with a fixed seed, so that activations neither grow nor vanish with depth."""
    generator = torch.Generator().manual_seed(0)
    fill: dict[str, Callable[[Tensor], object]] = {"running_var": nn.init.ones_, "bn.weight": nn.init.ones_}
    for name, value in network.state_dict().items():
        if value.dim() >= 2:
            nn.init.kaiming_normal_(value, nonlinearity="relu", generator=generator)
        else:
            next((f for end, f in fill.items() if name.endswith(end)), nn.init.zeros_)(value)


def inception_weights(weights: str | None, *, download: bool = True) -> Path:
    """Return the file of the weights.

    Args:
        weights: A path; by default torch-fidelity's file in torch hub's cache.
        download: Whether to download that file if it is missing.

    Raises:
        FileNotFoundError: If there is no file at `weights`.
        CacheError: If torch hub's cache cannot be written.
        OSError: If the download fails.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"no Inception weights at {weights!r}")
        return Path(weights)
    hub = Path(torch.hub.get_dir())
    path = hub / "checkpoints" / Path(URL).name
    if not download:
        return path
    advice = ", or give its path as extractor.weights=..."
    return fetch(f"{URL}#sha256={SHA256}", path, root=hub, variable="TORCH_HOME", advice=advice)


def _read(path: Path, expected: str | None) -> tuple[dict[str, Tensor], str]:
    digest = sha256(path.read_bytes()).hexdigest()
    if expected is not None and not digest.startswith(expected):
        raise ValueError(
            f"{path} is damaged or another file: its sha256 starts {digest[:8]}, expected {expected}; "
            "remove it and run again, or set extractor.sha256=null for weights of your own"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True), digest
    except (RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a file of weights, or holds more than tensors; it was not loaded") from error
