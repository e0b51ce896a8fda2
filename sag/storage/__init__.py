"""Images on disk: shards written atomically and packed into ADM's npz, and image collections read by streaming."""

from sag.storage.files import atomic
from sag.storage.images import ArrayImages, FolderImages, Images, ImageSource, NpzImages, SelectedImages, open_images
from sag.storage.shards import grid, pack, quantise, read_samples, stream_array, write_shard

__all__ = [
    "ArrayImages",
    "FolderImages",
    "ImageSource",
    "Images",
    "NpzImages",
    "SelectedImages",
    "atomic",
    "grid",
    "open_images",
    "pack",
    "quantise",
    "read_samples",
    "stream_array",
    "write_shard",
]
