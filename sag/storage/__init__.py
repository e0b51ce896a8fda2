"""Images on disk: shards written atomically and packed into ADM's npz, and image collections read by streaming."""

from sag.storage.downloads import cache_folder, cached, fetch, remote_size
from sag.storage.files import atomic
from sag.storage.folders import BlobFolder, Folder, LocalFolder, open_folder
from sag.storage.images import ArrayImages, FolderImages, ImageSource, NpzImages, SelectedImages, open_images
from sag.storage.levels import BITS, Images, dequantise, eight_bits, from_values, quantise, to_values
from sag.storage.shards import (
    Contents,
    DamagedShard,
    Shard,
    check_shards,
    pack,
    picture,
    read_samples,
    read_shard,
    stream_array,
    write_shard,
)

__all__ = [
    "BITS",
    "ArrayImages",
    "BlobFolder",
    "Contents",
    "DamagedShard",
    "Folder",
    "FolderImages",
    "ImageSource",
    "Images",
    "LocalFolder",
    "NpzImages",
    "SelectedImages",
    "Shard",
    "atomic",
    "cache_folder",
    "cached",
    "check_shards",
    "dequantise",
    "eight_bits",
    "fetch",
    "from_values",
    "open_folder",
    "open_images",
    "pack",
    "picture",
    "quantise",
    "read_samples",
    "read_shard",
    "remote_size",
    "stream_array",
    "to_values",
    "write_shard",
]
