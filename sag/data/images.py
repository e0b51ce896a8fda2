"""Opening images on disk in any supported form."""

from pathlib import Path

from sag.data.folder_images import FolderImages
from sag.data.npz_images import NpzImages
from sag.data.sources import ImageSource


def open_images(path: str | Path) -> ImageSource:
    """Open the images of an npz, or of a folder of PNGs of one size.

    Args:
        path: The file or folder.

    Returns:
        The images. They are not read yet.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If `NpzImages` or `FolderImages` rejects it.
    """
    return FolderImages(path) if Path(path).is_dir() else NpzImages(path)
