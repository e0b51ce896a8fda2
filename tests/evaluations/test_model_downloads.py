"""What models need from the network, with the network replaced by a server on this machine."""

import pytest
import yaml
from huggingface_hub import constants
from local_server import Server, npz

from evaluations import inception, model_downloads
from evaluations.model_downloads import download
from sag.build import groups


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """Configs of two models with one reference; the first has a classifier. Their files are on the server that is returned."""
    files = {"a.pt": b"weights of a", "b.pt": b"weights of b", "c.pt": b"weights of c", "reference.npz": npz(100)}
    files["inception.pth"] = b"weights"
    with Server(files) as server:
        for group, name, keys in (
            ("model", "a", {"checkpoint": "a.pt", "reference": "reference.npz"}),
            ("model", "b", {"checkpoint": "b.pt", "reference": "reference.npz"}),
            ("classifier", "a", {"checkpoint": "c.pt"}),
        ):
            (tmp_path / group).mkdir(exist_ok=True)
            addresses = {key: f"{server.url}/{file}" for key, file in keys.items()}
            (tmp_path / group / f"{name}.yaml").write_text(yaml.safe_dump(addresses))
        (tmp_path / "model/bundled.yaml").write_text("checkpoint: bundled\nreference: null\n")
        (tmp_path / "model/flags.yaml").write_text("checkpoint: null\n")
        monkeypatch.setattr(groups, "CONFIGS", tmp_path)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(inception, "URL", f"{server.url}/inception.pth")
        yield server


def names(found):
    return [file.path.name for file in found]


def test_a_model_is_downloaded_with_all_that_belongs_to_it(configs, monkeypatch):
    monkeypatch.setattr(inception, "SHA256", "00000000")
    with pytest.raises(OSError, match=r"inception\.pth: .*its sha256 starts with (\w{8}), expected 00000000") as caught:
        download("a")
    monkeypatch.setattr(inception, "SHA256", str(caught.value).split("starts with ")[1][:8])
    found = download("a")
    assert names(found) == ["a.pt", "c.pt", "reference.npz", "inception.pth"]
    assert all(file.present and file.size == file.path.stat().st_size for file in found)
    asked = len(configs.asked)
    assert download(["a"]) == found
    assert len(configs.asked) == asked
    assert names(download(["b", "a"], ["checkpoint", "reference"])) == ["b.pt", "reference.npz", "a.pt"]


def test_a_model_of_latents_comes_with_its_autoencoder(configs, tmp_path):
    content = {"checkpoint": f"{configs.url}/a.pt", "autoencoder": {"checkpoint": f"{configs.url}/b.pt"}}
    (tmp_path / "model/latents.yaml").write_text(yaml.safe_dump(content))
    assert names(download("latents", ["checkpoint", "classifier", "reference"])) == ["a.pt", "b.pt"]


def test_a_dry_run_tells_sizes_and_downloads_nothing(configs):
    download("b", ["checkpoint"])
    found = download("b", ["checkpoint", "reference"], dry_run=True)
    assert [(file.path.name, file.present, file.size) for file in found] == [
        ("b.pt", True, 12),
        ("reference.npz", False, len(configs.content["reference.npz"])),
    ]
    assert not found[1].path.exists()
    assert found[1].url == f"{configs.url}/reference.npz"


def test_all_models_and_bundled_ones(configs):
    assert names(download("all", ["checkpoint"])) == ["a.pt", "b.pt"]
    assert download("bundled") == []


@pytest.mark.parametrize(
    ("what", "parts", "message"),
    [
        ("c", ["checkpoint"], "unknown model 'c'; expected all or any of a, b, bundled"),
        ("all", ["weights"], "unknown part 'weights'; expected any of checkpoint, classifier, reference, inception"),
    ],
)
def test_unknown_names_are_refused(configs, what, parts, message):
    with pytest.raises(ValueError, match=message):
        download(what, parts)


@pytest.mark.slow
def test_the_published_models_and_their_files():
    unets = [name for name in model_downloads._models("all") if name.startswith(("adm", "iddpm"))]
    found = {part: list(model_downloads._addresses(unets, [part])) for part in ("checkpoint", "classifier", "reference")}
    assert {part: len(urls) for part, urls in found.items()} == {"checkpoint": 16, "classifier": 4, "reference": 15}
    assert all(url.startswith("https://openaipublic.blob.core.windows.net/") for urls in found.values() for url in urls)
    assert [url.rpartition("/")[2] for url in model_downloads._addresses(["dit_xl2_512"], model_downloads.PARTS)] == [
        "DiT-XL-2-512x512.pt", "diffusion_pytorch_model.safetensors", "VIRTUAL_imagenet512.npz"
    ]  # fmt: skip


def test_folders_of_the_hub_are_looked_for_in_its_cache(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", configs.url)
    (tmp_path / "model/folder.yaml").write_text("checkpoint: some/model\ndenoiser: {}\n")
    (missing,) = download("folder", ["checkpoint"], dry_run=True)
    assert (missing.url, missing.present) == ("https://huggingface.co/some/model", False)
    with pytest.raises(OSError, match="some/model cannot be downloaded from the hub: ") as caught:
        download("folder", ["checkpoint"])
    assert "\n" not in str(caught.value)
    place = tmp_path / "hub/models--some--model"
    (place / "snapshots/0a1b").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0a1b")
    (there,) = download("folder", ["checkpoint"], dry_run=True)
    assert (there.path, there.present) == (place / "snapshots/0a1b", True)
