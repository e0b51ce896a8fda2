"""The sizes of images that networks take."""

from collections.abc import Sequence
from typing import Any


def image_size(network: Any, size: Sequence[int] | None = None, pixels: int = 1) -> tuple[int, int]:
    """Return (height, width) of a network's input.

    Args:
        network: The network.
        size: (height, width) of the images in pixels; None is the network's own square.
        pixels: How many pixels of an image a place of the input is high and wide: 1, or the factor of an autoencoder.

    Raises:
        ValueError: If these are not two numbers, or cannot be halved as often as the autoencoder and the network halve them.
    """
    if size is None:
        return network.image_size, network.image_size
    factor = pixels * network.image_size // getattr(network, "lowest_resolution", network.image_size)
    if len(size) != 2 or min(size) < 1 or any(length % factor for length in size):
        raise ValueError(f"size must be [height,width] in pixels, both divisible by {factor} here, got {list(size)}")
    return size[0] // pixels, size[1] // pixels
