"""One picture of many images."""

import numpy as np
from numpy.typing import NDArray

from sag.data.levels import Images, eight_bits


def picture(images: Images) -> NDArray[np.uint8]:
    """Tile images into one picture for PIL, as square as possible, with black in free places.

    Args:
        images: (N, H, W, C). If C is not 3, only the first channel is shown.

    Returns:
        (rows * H, columns * W, 3), or without the last axis in grey.
    """
    n, height, width, channels = images.shape
    shown = 3 if channels == 3 else 1
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, height, width, shown), np.uint8)
    tiles[:n] = eight_bits(images[..., :shown])
    tiled = tiles.reshape(rows, columns, height, width, shown).swapaxes(1, 2)
    return np.squeeze(tiled.reshape(rows * height, columns * width, shown), 2 if shown == 1 else ())
