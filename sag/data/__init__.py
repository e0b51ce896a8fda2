"""Collections of images, which are read in small parts, and the conversion of their pixel values."""

from sag.data.folder_images import FolderImages
from sag.data.images import open_images
from sag.data.labels import Labels
from sag.data.levels import BITS, Images, eight_bits, from_values, to_values
from sag.data.npz_images import NpzImages
from sag.data.sources import ArrayImages, ImageSource, SelectedImages
from sag.data.tiles import picture

__all__ = [
    "BITS",
    "ArrayImages",
    "FolderImages",
    "ImageSource",
    "Images",
    "Labels",
    "NpzImages",
    "SelectedImages",
    "eight_bits",
    "from_values",
    "open_images",
    "picture",
    "to_values",
]
