"""The base class of image collections, images in memory, and selections of images."""

from abc import ABC, abstractmethod
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from sag.data.labels import as_labels
from sag.data.levels import Images


class ImageSource(ABC):
    """A collection of images of one size, in levels of 8 or 16 bits. They are read a few at a time.

    Attributes:
        shape: (N, H, W, C).
    """

    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the images and their labels. All images may be read when it is first computed."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Images:
        """Read consecutive images.

        Args:
            start: Index of the first image.
            stop: Index after the last image. It may exceed the number of images.

        Returns:
            The images, (n, H, W, C) uint8 or uint16.
        """

    def take(self, rows: NDArray[np.int64]) -> Images:
        """Read the images of the given indices, in this order, (n, H, W, C) uint8 or uint16."""
        return np.concatenate([self.read(i, i + 1) for i in rows.tolist()])

    def labels(self) -> NDArray[np.int64] | None:
        """Return the labels, (N,), or None if there are none."""
        return None

    def verify(self) -> None:
        """Check that the stored bytes are undamaged, as far as the format allows.

        Raises:
            ValueError: If they are not.
        """


class ArrayImages(ImageSource):
    """Images in memory.

    Args:
        images: The images, (N, H, W, C) uint8 or uint16.
        labels: Whole numbers, (N,), or None.

    Raises:
        ValueError: If the labels have the wrong shape or type.
    """

    def __init__(self, images: Images, labels: NDArray[np.generic] | None = None) -> None:
        self.images, self.shape = images, images.shape
        self._labels = None if labels is None else as_labels(labels, len(images), "the array of labels")

    @cached_property
    @override
    def fingerprint(self) -> str:
        digest = sha256(repr((self.shape, self.images.dtype.str)).encode())
        for array in (self.images, self._labels):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @override
    def read(self, start: int, stop: int) -> Images:
        return self.images[start:stop]

    @override
    def take(self, rows: NDArray[np.int64]) -> Images:
        return self.images[rows]

    @override
    def labels(self) -> NDArray[np.int64] | None:
        return self._labels


class SelectedImages(ImageSource):
    """A selection of images.

    Args:
        source: The images to select from.
        rows: Indices of the selected images, (n,).
    """

    def __init__(self, source: ImageSource, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows
        self.shape = (len(rows), *source.shape[1:])

    @cached_property
    @override
    def fingerprint(self) -> str:
        return sha256(self.source.fingerprint.encode() + self.rows.tobytes()).hexdigest()

    @override
    def read(self, start: int, stop: int) -> Images:
        return self.source.take(self.rows[start:stop])

    @override
    def take(self, rows: NDArray[np.int64]) -> Images:
        return self.source.take(self.rows[rows])

    @override
    def labels(self) -> NDArray[np.int64] | None:
        labels = self.source.labels()
        return None if labels is None else labels[self.rows]

    @override
    def verify(self) -> None:
        self.source.verify()
