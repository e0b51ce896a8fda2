"""The sizes of images that networks take."""

from collections.abc import Sequence
from typing import Any


def image_size(network: Any, size: Sequence[int] | None = None) -> tuple[int, int]:
    """Return (height, width) in pixels.

    Args:
        network: The network.
        size: (height, width) of the images; None is the network's own square.

    Raises:
        ValueError: If these are not two numbers, or the network cannot halve such a size as often as it does.
    """
    if size is None:
        return network.image_size, network.image_size
    factor = network.image_size // getattr(network, "lowest_resolution", network.image_size)
    if len(size) != 2 or min(size) < 1 or any(length % factor for length in size):
        raise ValueError(f"size must be [height,width] in pixels, both divisible by {factor} here, got {list(size)}")
    return size[0], size[1]
