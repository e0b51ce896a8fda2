"""Folders of runs, on a disk and on a blob store (a stand-in for the part of blobfile that is used)."""

import contextlib
import io

import pytest

from sag.storage import BlobFolder, LocalFolder, folders, open_folder


class Blobs:
    """What blobfile's context does with addresses, in a dictionary."""

    def __init__(self):
        self.files = {}

    def listdir(self, url):
        found = [name.removeprefix(f"{url}/") for name in self.files if name.startswith(f"{url}/")]
        if not found:
            raise FileNotFoundError(url)
        return iter({name if "/" not in name else name.split("/")[0] + "/" for name in found})

    def exists(self, url):
        return url in self.files

    def remove(self, url):
        if self.files.pop(url, None) is None:
            raise FileNotFoundError(url)

    @contextlib.contextmanager
    def BlobFile(self, url, mode):
        if mode == "rb":
            if url not in self.files:
                raise FileNotFoundError(url)
            yield io.BytesIO(self.files[url])
        else:
            buffer = io.BytesIO()
            yield buffer
            self.files[url] = buffer.getvalue()


@pytest.fixture(params=["disk", "blobs"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return open_folder(str(tmp_path / "run"))
    blobs = Blobs()
    monkeypatch.setattr(folders.blobfile, "create_context", lambda **options: blobs)
    return open_folder("gs://bucket/run/")


def test_files_are_written_read_listed_and_removed(folder):
    assert folder.names() == folder.names("shards") == set()
    folder.write("a", b"1")
    folder.write("shards/b", b"2")
    folder.write("a", b"3")
    assert folder.names() == {"a"}
    assert folder.names("shards") == {"b"}
    assert folder.read("a") == b"3"
    assert (folder.create("a", b"4"), folder.create("c", b"4")) == (False, True)
    assert (folder.read("a"), folder.read("c")) == (b"3", b"4")
    folder.remove("c")
    folder.remove("c")
    folder.remove_folder("shards")
    folder.remove_folder("shards")
    assert folder.names() == {"a"}
    assert folder.names("shards") == set()
    with pytest.raises(FileNotFoundError):
        folder.read("c")


def test_a_file_that_is_not_finished_is_not_there(folder):
    folder.write("a", b"old")

    def fail_halfway():
        with folder.writer("a") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert folder.read("a") == b"old"
    assert folder.names() == {"a"}


def test_places(tmp_path):
    assert isinstance(open_folder("az://account/container/run"), BlobFolder)
    assert str(open_folder("gs://bucket/run/")) == "gs://bucket/run"
    assert isinstance(open_folder("run"), LocalFolder)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        open_folder(str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"out=s3://bucket is neither a path nor a gs:// or az:// address"):
        open_folder("s3://bucket")
