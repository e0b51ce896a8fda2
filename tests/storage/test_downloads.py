"""Downloads: made once, continued, verified."""

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest
from local_server import Server, npz

from sag.storage import CacheError, cache_folder, cached, fetch, remote_size, without_digest, writing_cache


def visible():
    return [path.name for path in cache_folder().rglob("*") if path.is_file() and path.name[0] != "."]


def test_a_download_is_made_once_and_shows_its_progress(capsys):
    content = npz()
    with Server(content, md5=hashlib.md5(content).digest()) as server:
        assert remote_size(f"{server.url}/a.npz") == len(content)
        for _ in range(2):
            assert fetch(f"{server.url}/a.npz").read_bytes() == content
    assert len(server.asked) == 2
    assert "downloading a.npz" in capsys.readouterr().err
    assert visible() == ["a.npz"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_is_continued(ranges):
    content = npz()
    with Server(content, sent=30_000, ranges=ranges) as server:
        url = f"{server.url}/a.npz"
        with pytest.raises(OSError, match=r"could not download .*(closed after|more expected).*the same command tries again"):
            fetch(url)
        assert visible() == []
        server.sent = None
        assert fetch(url).read_bytes() == content
    (begun,) = {asked for asked in server.asked if asked}
    assert 0 < int(begun.removeprefix("bytes=").rstrip("-")) <= 30_000


def test_what_an_other_file_left_is_not_mixed_with_this_one():
    content = npz()
    with Server(content) as server:
        url = f"{server.url}/a.npz"
        part = cached(url).with_name(".a.npz.part")
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 10)
        with pytest.raises(OSError, match="the downloaded file is damaged"):
            fetch(url)
        assert not part.exists()
        part.write_bytes(b"x" * (len(content) + 10))
        assert fetch(url).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "change", "md5", "message"),
    [
        ("a.npz", lambda content: content[:5000] + b"?" + content[5001:], None, "checksum of arr_0.npy differs"),
        ("a.npz", lambda content: b"<html>an error page</html>", None, "damaged .*not a zip"),
        ("a.pt", lambda content: b"an old pickle", b"0" * 16, r"its md5 starts with \w{8}, expected 30303030"),
        ("missing.pt", lambda content: content, None, "404"),
    ],
)
def test_what_is_damaged_or_missing_does_not_appear(name, change, md5, message):
    with Server(change(npz()), md5=md5) as server, pytest.raises(OSError, match=message):
        fetch(f"{server.url}/{name}")
    assert visible() == []


@pytest.mark.parametrize("digits", [64, 8])
def test_a_hash_in_the_address_is_compared(digits):
    content = b"weights"
    right, wrong = (hashlib.sha256(of).hexdigest()[:digits] for of in (content, b"others"))
    with Server(content) as server:
        url = f"{server.url}/a.bin"
        with pytest.raises(
            OSError, match=rf"could not download {url}: .*its sha256 starts with {right[:8]}, expected {wrong[:8]}"
        ):
            fetch(f"{url}#sha256={wrong}")
        assert visible() == []
        assert fetch(f"{url}#sha256={right}") == cached(url) == cached(f"{url}#sha256={right}")
        assert remote_size(f"{url}#sha256={right}") == 7
    assert without_digest(f"{url}#sha256={right}") == without_digest(url) == url


def test_a_download_may_go_to_another_place(tmp_path):
    target = tmp_path / "hub/file.bin"
    with Server(b"weights") as server:
        assert fetch(f"{server.url}/a.bin", target) == target
    assert target.read_bytes() == b"weights"
    with pytest.raises(CacheError, match=r"^the cache folder /proc/hub cannot be written .*; set TORCH_HOME to a folder"):
        fetch(f"{server.url}/a.bin", Path("/proc/hub/a/file.bin"), root=Path("/proc/hub"), variable="TORCH_HOME")


def test_several_who_want_one_file_download_it_once():
    content = npz()
    with Server(content) as server:
        threads = [threading.Thread(target=fetch, args=[f"{server.url}/a.npz"]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.asked) == 1
    assert visible() == ["a.npz"]


@pytest.mark.parametrize("place", ["/proc/nope", "{}/file", "{}/file/below"])
def test_a_cache_that_cannot_be_made_is_named_with_its_variable(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_bytes(b"")
    place = place.format(tmp_path)
    monkeypatch.setenv("SAG_CACHE", place)
    with pytest.raises(CacheError, match=rf"^the cache folder {place} cannot be written \(N.*: {place}.*set SAG_CACHE to"):
        fetch("http://127.0.0.1:9/a.npz")


@pytest.mark.parametrize(
    ("code", "file", "named"),
    [
        (errno.ENOSPC, None, True),  # a write that fails does not know the name of its file
        (errno.EDQUOT, None, True),
        (errno.EROFS, "cache/a/x.part", True),
        (errno.EACCES, "cache/a/.x.lock", True),
        (errno.EACCES, "cache", True),
        (errno.ENOENT, "images/1.png", False),
        (errno.ECONNREFUSED, None, False),
    ],
)
def test_only_what_concerns_the_cache_is_called_so(tmp_path, monkeypatch, code, file, named):
    monkeypatch.setenv("SAG_CACHE", str(tmp_path / "cache"))
    with (
        pytest.raises(
            OSError, match=r"set SAG_CACHE to a folder that can be written and has room" if named else "Errno"
        ) as caught,
        writing_cache(tmp_path / "cache/a"),
    ):
        raise OSError(code, os.strerror(code), *([] if file is None else [str(tmp_path / file)]))
    assert isinstance(caught.value, CacheError) == named
    assert "Errno" not in str(caught.value) or not named


def test_a_full_disk_during_a_download_is_told(monkeypatch):
    def full(url, part):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sag.storage.downloads._download", full)
    with pytest.raises(CacheError, match=rf"the cache folder {cache_folder()} cannot be written \(No space left on device\)"):
        fetch("http://127.0.0.1:9/a.npz")


def test_without_a_home_folder_the_variable_is_told(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SAG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CacheError, match="there is no home folder for the cache; set SAG_CACHE to a folder"):
        cache_folder()
