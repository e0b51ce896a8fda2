"""Pictures of many images."""

import numpy as np

from sag.data import picture


def test_the_grid_tiles_row_by_row():
    tiles = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 2, 1), np.uint8)
    assert picture(tiles)[::2, ::2].tolist() == [[1, 2, 3], [4, 5, 0]]
