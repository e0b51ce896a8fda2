"""Files: folders that may be remote, npz archives, downloads in a cache, and records of which files belong to a run."""

from sag.storage.digests import remembered_digests
from sag.storage.downloads import CacheError, cache_folder, cached, fetch, remote_size, without_digest, writing_cache
from sag.storage.files import atomic, check_new
from sag.storage.folders import BlobFolder, Folder, LocalFolder, open_folder
from sag.storage.npz import Npz
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

__all__ = [
    "RECORD",
    "BlobFolder",
    "CacheError",
    "Folder",
    "LocalFolder",
    "Npz",
    "add_own_file",
    "atomic",
    "cache_folder",
    "cached",
    "check_new",
    "claim_files",
    "fetch",
    "open_folder",
    "own_files",
    "refuse_foreign",
    "remembered_digests",
    "remote_size",
    "remove_own_files",
    "settings_hash",
    "to_json",
    "without_digest",
    "writing_cache",
]
