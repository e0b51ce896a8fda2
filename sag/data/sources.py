"""Collections of images, read a few at a time: what all have in common, arrays in memory, and some images of a collection."""

from abc import ABC, abstractmethod
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from sag.data.labels import as_labels
from sag.data.levels import Images


class ImageSource(ABC):
    """Images of one size, in levels of 8 or 16 bits: `shape` is (N, H, W, C)."""

    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the images or their labels do. The content is read for it, when it is first asked for."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Images:
        """Images start to stop - 1, uint8 or uint16 (n, H, W, C)."""

    def take(self, rows: NDArray[np.int64]) -> Images:
        """The images of any rows, uint8 or uint16 (n, H, W, C)."""
        return np.concatenate([self.read(i, i + 1) for i in rows.tolist()])

    def labels(self) -> NDArray[np.int64] | None:
        """The labels (N,), or None where there are none."""
        return None

    def verify(self) -> None:
        """Raise a ValueError if the stored bytes are not those that were written, as far as the format can tell."""


class ArrayImages(ImageSource):
    """Images that are in memory, uint8 or uint16 (N, H, W, C), and their labels if there are any.

    Args:
        images: The images.
        labels: Whole numbers (N,), or None.

    Raises:
        ValueError: Labels of another shape or type.
    """

    def __init__(self, images: Images, labels: NDArray[np.generic] | None = None) -> None:
        self.images, self.shape = images, images.shape
        self._labels = None if labels is None else as_labels(labels, len(images), "the array of labels")

    @cached_property
    def fingerprint(self) -> str:
        """See `ImageSource.fingerprint`."""
        digest = sha256(repr((self.shape, self.images.dtype.str)).encode())
        for array in (self.images, self._labels):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`."""
        return self.images[start:stop]

    def take(self, rows: NDArray[np.int64]) -> Images:
        """See `ImageSource.take`."""
        return self.images[rows]

    def labels(self) -> NDArray[np.int64] | None:
        """See `ImageSource.labels`."""
        return self._labels


class SelectedImages(ImageSource):
    """Some images of a source: `rows`, (n,) indices."""

    def __init__(self, source: ImageSource, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows
        self.shape = (len(rows), *source.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """See `ImageSource.fingerprint`."""
        return sha256(self.source.fingerprint.encode() + self.rows.tobytes()).hexdigest()

    def read(self, start: int, stop: int) -> Images:
        """See `ImageSource.read`."""
        return self.source.take(self.rows[start:stop])

    def take(self, rows: NDArray[np.int64]) -> Images:
        """See `ImageSource.take`."""
        return self.source.take(self.rows[rows])

    def labels(self) -> NDArray[np.int64] | None:
        """See `ImageSource.labels`."""
        labels = self.source.labels()
        return None if labels is None else labels[self.rows]

    def verify(self) -> None:
        """See `ImageSource.verify`."""
        self.source.verify()
