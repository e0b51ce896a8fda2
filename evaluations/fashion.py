"""The bundled feature network: small, trained by this project on Fashion-MNIST, for images of 32 x 32 pixels."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from evaluations.extractors import Extractor, Features, state_hash

WEIGHTS = Path(__file__).parent / "weights"
REFERENCE = WEIGHTS / "fashion_mnist.npz"
"""Statistics of the 60,000 training images and 10,000 of the images."""
SPATIAL = 4  # channels of the 8 x 8 map that make sFID's features


class FashionClassifier(nn.Module):
    """Five convolutions with group normalisation (arXiv:1803.08494), the mean over positions, and a linear layer.

    It takes grey images (n, 1, 32, 32), float32 with the values 0 to 255, and returns logits (n, 10).
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
        """Pool (n, 128) of the last map, spatial (n, 256) of the first channels of the 8 x 8 map, logits (n, 10)."""
        middle = self.to_8(self.to_16(x / 127.5 - 1))  # (n, 64, 8, 8)
        pool = self.top(middle).mean((2, 3))  # (n, 128)
        return Features(pool, middle[:, :SPATIAL].flatten(1), self.fc(self.dropout(pool)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        logits = self.features(x).logits
        assert logits is not None
        return logits


class FashionFeatures(Extractor):
    """`FashionClassifier` with the bundled weights; its scores compare with each other, not with published ones.

    weights: a path of a safetensors file; None takes the bundled one.
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

    def features(self, x: Tensor) -> Features:
        """See `Extractor.features`; images of 32 x 32, whose channels are averaged.

        Raises:
            ValueError: images of another size.
        """
        size = FashionClassifier.image_size
        if x.shape[2:] != (size, size):
            raise ValueError(
                f"extractor fashion_features takes images of {size}x{size}, got {x.shape[2]}x{x.shape[3]}; "
                "for other images use extractor=inception"
            )
        return self.network.features(x.mean(1, keepdim=True))
