"""Prefetching, with the network replaced."""

import pytest

from sag.storage import cached
from scripts import download


@pytest.fixture
def script(run_script, monkeypatch, tmp_path):
    fetched = []

    def fetch(url):
        fetched.append(url)
        cached(url).parent.mkdir(parents=True, exist_ok=True)
        cached(url).touch()
        return cached(url)

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(download, "remote_size", lambda url: 2_210_000_000)
    monkeypatch.setattr(download, "inception_weights", lambda weights, download: tmp_path / "inception.pth")

    def call(*arguments):
        del fetched[:]
        return run_script(download.main, "download", download.DownloadConfig, *arguments).splitlines(), list(fetched)

    return call


def test_a_model_is_fetched_with_all_that_belongs_to_it(script):
    printed, fetched = script("what=adm_imagenet128")
    names = [url.rsplit("/", 1)[1] for url in fetched]
    assert names == ["128x128_diffusion.pt", "128x128_classifier.pt", "VIRTUAL_imagenet128_labeled.npz"]
    assert [line.rsplit("/", 1)[1] for line in printed] == [*names, "inception.pth"]
    _, fetched = script("what=[adm_imagenet256,adm_imagenet256_uncond]", "parts=[checkpoint,reference]")
    assert [url.rsplit("/", 1)[1] for url in fetched] == [
        "256x256_diffusion.pt", "VIRTUAL_imagenet256_labeled.npz", "256x256_diffusion_uncond.pt"
    ]  # fmt: skip


def test_a_dry_run_tells_sizes_and_fetches_nothing(script):
    script("what=adm_lsun_cat", "parts=[checkpoint]")
    printed, fetched = script("what=adm_lsun_cat", "dry_run=true")
    assert fetched == []
    assert [line.split()[0] for line in printed] == ["there", "2.21", "2.21"]


def test_all_and_bundled_models(script):
    assert len(script("what=all", "parts=[checkpoint]")[1]) == 16
    assert script("what=fashion32") == (["nothing to download: what these models need comes with the package"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["what=adm"], "unknown model 'adm'; expected all or any of adm_imagenet128, "),
        (["what=all", "parts=[weights]"], "unknown part 'weights'; expected any of checkpoint, classifier"),
        ([], "what"),
    ],
)
def test_bad_input_is_one_sentence(script, arguments, message):
    with pytest.raises(SystemExit, match=message):
        script(*arguments)
