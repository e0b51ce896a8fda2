"""Files: shards packed into ADM's npz, image collections read by streaming, downloads in a cache, and tensors."""

from sag.storage.digests import remembered_digests
from sag.storage.downloads import CacheError, cache_folder, cached, fetch, remote_size, writing_cache
from sag.storage.earlier import EarlierSamples
from sag.storage.files import atomic
from sag.storage.folder_images import FolderImages
from sag.storage.folders import BlobFolder, Folder, LocalFolder, open_folder
from sag.storage.images import open_images
from sag.storage.levels import BITS, Images, dequantise, eight_bits, from_values, quantise, to_values
from sag.storage.npz import Npz
from sag.storage.npz_images import NpzImages
from sag.storage.owned import (
    RECORD,
    add_own_file,
    claim_files,
    own_files,
    refuse_foreign,
    remove_own_files,
    settings_hash,
    to_json,
)
from sag.storage.shards import (
    Contents,
    DamagedShard,
    Shard,
    check_shards,
    pack,
    picture,
    read_samples,
    read_shard,
    shard_name,
    shard_rows,
    stream_array,
    write_shard,
)
from sag.storage.sources import ArrayImages, ImageSource, SelectedImages
from sag.storage.tensors import read_tensors

__all__ = [
    "BITS",
    "RECORD",
    "ArrayImages",
    "BlobFolder",
    "CacheError",
    "Contents",
    "DamagedShard",
    "EarlierSamples",
    "Folder",
    "FolderImages",
    "ImageSource",
    "Images",
    "LocalFolder",
    "Npz",
    "NpzImages",
    "SelectedImages",
    "Shard",
    "add_own_file",
    "atomic",
    "cache_folder",
    "cached",
    "check_shards",
    "claim_files",
    "dequantise",
    "eight_bits",
    "fetch",
    "from_values",
    "open_folder",
    "open_images",
    "own_files",
    "pack",
    "picture",
    "quantise",
    "read_samples",
    "read_shard",
    "read_tensors",
    "refuse_foreign",
    "remembered_digests",
    "remote_size",
    "remove_own_files",
    "settings_hash",
    "shard_name",
    "shard_rows",
    "stream_array",
    "to_json",
    "to_values",
    "write_shard",
    "writing_cache",
]
