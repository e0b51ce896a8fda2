"""The bundled feature network: a small classifier of 32 x 32 images, which this project trained on Fashion-MNIST."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import override

from evaluations.extractors import Extractor, Features, state_hash

WEIGHTS = Path(__file__).parent / "weights"
REFERENCE = WEIGHTS / "fashion_mnist.npz"
"""The bundled reference: statistics of the 60,000 training images, and 10,000 of the images."""
SPATIAL = 4  # number of channels of the 8 x 8 map in sFID's features


class FashionClassifier(nn.Module):
    """Five convolutions with group normalisation (arXiv:1803.08494), the mean over positions, and a linear layer.

    `forward` maps grey images (n, 1, 32, 32), float32 with values from 0 to 255, to logits (n, 10).

    Args:
        width: Channels of the first convolution.
        dropout: Dropout probability before the linear layer.
    """

    image_size, in_channels, num_classes = 32, 1, 10

    def __init__(self, width: int = 32, dropout: float = 0.3) -> None:
        super().__init__()

        def block(channels: int, out: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.GroupNorm(8, out), nn.ReLU()]

        self.to_16 = nn.Sequential(*block(1, width), nn.MaxPool2d(2))
        self.to_8 = nn.Sequential(*block(width, 2 * width), *block(2 * width, 2 * width), nn.MaxPool2d(2))
        self.top = nn.Sequential(*block(2 * width, 4 * width), *block(4 * width, 4 * width))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * width, self.num_classes)

    def features(self, x: Tensor) -> Features:
        """Return pool (n, 128), spatial (n, 256), which are the first channels of the 8 x 8 map, and logits (n, 10)."""
        middle = self.to_8(self.to_16(x / 127.5 - 1))  # (n, 64, 8, 8)
        pool = self.top(middle).mean((2, 3))  # (n, 128)
        return Features(pool, middle[:, :SPATIAL].flatten(1), self.fc(self.dropout(pool)))

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits = self.features(x).logits
        assert logits is not None
        return logits


class FashionFeatures(Extractor):
    """`FashionClassifier` as an extractor. Its scores are comparable with each other, not with published ones.

    It takes images of 32 x 32 pixels and averages their channels.

    Args:
        weights: A safetensors file; by default the bundled one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If images have another size (`features`).
    """

    classes = FashionClassifier.num_classes
    notes = ("features of the bundled Fashion-MNIST classifier: these numbers are not on the scale of Inception's",)

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        path = Path(weights) if weights is not None else WEIGHTS / "fashion_features.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"no weights of fashion_features at {path}")
        self.network = FashionClassifier()
        self.network.load_state_dict(load_file(path))
        self.float().eval().requires_grad_(False)
        self.id = f"fashion_features-{state_hash(self.network)[:8]}"

    @override
    def features(self, x: Tensor) -> Features:
        size = FashionClassifier.image_size
        if x.shape[2:] != (size, size):
            raise ValueError(
                f"extractor fashion_features takes images of {size}x{size}, got {x.shape[2]}x{x.shape[3]}; "
                "for other images use extractor=inception"
            )
        return self.network.features(x.mean(1, keepdim=True))
