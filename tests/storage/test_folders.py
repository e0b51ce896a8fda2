"""Folders of runs, on a disk and on a blob store."""

import pytest

from sag.storage import BlobFolder, LocalFolder, folders, open_folder


@pytest.fixture(params=["disk", "blobs"])
def folder(request, tmp_path):
    return open_folder(str(tmp_path / "run")) if request.param == "disk" else request.getfixturevalue("bucket")


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
    folder.remove("shards/b")
    assert folder.names() == {"a"}
    assert [folder.exists(name) for name in ("a", "c", "shards/b")] == [True, False, False]
    with folder.local("a") as path:
        assert path.read_bytes() == b"3"
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


def test_a_folder_that_is_removed_while_a_file_is_written_is_made_again(tmp_path, monkeypatch):
    folder, atomic = open_folder(str(tmp_path / "run")), folders.atomic

    def removed_first(path, **options):
        monkeypatch.setattr(folders, "atomic", atomic)
        path.parent.rmdir()
        return atomic(path, **options)

    for put in (folder.write, folder.create):
        monkeypatch.setattr(folders, "atomic", removed_first)
        put("shards/a", b"1")
        assert folder.read("shards/a") == b"1"
        folder.remove("shards/a")


def test_a_request_that_fails_is_made_again(bucket):
    bucket.write("a", b"1")
    bucket.pool.failures = 2
    assert bucket.read("a") == b"1"
    assert bucket.pool.failures == 0


def test_places(tmp_path):
    assert isinstance(open_folder("az://account/container/run"), BlobFolder)
    assert str(open_folder("gs://bucket/run/")) == "gs://bucket/run"
    assert isinstance(open_folder("run"), LocalFolder)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        open_folder(str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"out=s3://bucket is neither a path nor a gs:// or az:// address"):
        open_folder("s3://bucket")


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    for place in ("/proc/run", tmp_path / "file/run"):
        folder = open_folder(str(place))
        for write in (folder.write, folder.create):
            with pytest.raises(ValueError, match=rf"out={place} cannot be written \(.*\); give another folder"):
                write("shards/a", b"1")
