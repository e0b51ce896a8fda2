"""Images on a disk, whatever they are in."""

from pathlib import Path

from sag.data.folder_images import FolderImages
from sag.data.npz_images import NpzImages
from sag.data.sources import ImageSource


def open_images(path: str | Path) -> ImageSource:
    """The images of an npz, or of a folder of PNGs of one size.

    Args:
        path: The file or folder.

    Returns:
        The images, which are not read yet.

    Raises:
        FileNotFoundError: Nothing there.
        ValueError: As `NpzImages` and `FolderImages`.
    """
    return FolderImages(path) if Path(path).is_dir() else NpzImages(path)
