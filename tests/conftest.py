"""Keeps tests off the user's cache, and starts a local blob store."""

import functools
import json
import logging
import os
import sys

import blobfile
import pytest
import torch
import urllib3
from gcp_storage_emulator.server import create_server
from hydra.core.global_hydra import GlobalHydra

from sag.storage import folders

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n: a core for each worker, and for the programs it starts
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="there is no GPU here (torch.cuda.is_available() is false)"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    for name in ("sag", "evaluations"):  # a program that ran in this process before may have shown logs on the screen
        logging.getLogger(name).handlers.clear()
    monkeypatch.setenv("SAG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script's main in this process with arguments; returns what it printed, or raises SystemExit with its message."""
    from scripts.common import run

    def call(main, config_name, schema, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{config_name}.py", *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        for name in ("sag", "evaluations"):  # the program shows logs on the screen; after the test nobody does
            monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        run(main, config_name, schema)
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def blob_server():
    """The address of a local server that speaks Google's protocol to blobfile, with one bucket."""
    started = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    started.start()
    host, port = started._api._httpd.server_address
    yield f"http://{host}:{port}"
    started.stop()


class Redirected(urllib3.PoolManager):
    """Asks the local server in place of Google's; where it answers otherwise than Google documents, the answer is mended."""

    def __init__(self, server):
        super().__init__()
        self.server, self.failures = server, 0

    def request(self, method, url, **arguments):
        if self.failures:
            self.failures -= 1
            raise urllib3.exceptions.ConnectTimeoutError
        answer = super().request(method, url.replace("https://storage.googleapis.com", self.server), **arguments)
        if method == "DELETE" and answer.status == 200:
            answer.status = 204
        if method == "GET" and "/o?" in url:  # a listing: without the keys that have nothing
            found = {key: value for key, value in answer.json().items() if value}
            answer = urllib3.HTTPResponse(json.dumps(found).encode(), answer.headers, answer.status)
        return answer


@pytest.fixture
def bucket(blob_server, monkeypatch, tmp_path):
    """A folder on the server; `failures` of its `pool` is how many requests fail next."""
    pool = Redirected(blob_server)
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    monkeypatch.setattr(blobfile, "create_context", functools.partial(blobfile.create_context, get_http_pool=lambda: pool))
    folder = folders.open_folder(f"gs://bucket/{tmp_path.name}/")
    folder.pool = pool
    return folder
