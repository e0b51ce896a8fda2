"""Models in the library's format are loaded from folders and the hub's cache; what is not there is said in one sentence."""

import importlib.util
import json
import shutil
import sys

import huggingface_hub
import pytest
import torch
from tiny import dit_pipeline, stable_diffusion, stable_diffusion_xl, unet

import sag.diffusers
from sag.diffusers import load_denoiser
from sag.diffusers.extras import require
from sag.diffusion import Condition

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    make = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "dit": dit_pipeline}
    return {name: f(tmp_path_factory.mktemp(name)) for name, f in make.items()}


@pytest.fixture
def copied(folders, tmp_path):
    def copy(name):
        return shutil.copytree(folders[name][1], tmp_path / name)

    return copy


@pytest.mark.parametrize("name", ["sd", "sdxl", "dit"])
def test_a_folder_is_loaded_with_the_weights_it_has(folders, name, capfd):
    pipeline, folder = folders[name]
    capfd.readouterr()
    denoiser = load_denoiser(str(folder), CPU)
    assert capfd.readouterr() == ("", "")  # no progress bars
    own, loaded = (
        (getattr(p, "unet", None) or p.transformer).state_dict() for p in (pipeline, denoiser_pipeline(denoiser, pipeline))
    )
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[key], loaded[key]) for key in own)
    assert not any(parameter.requires_grad for parameter in denoiser.network.parameters())
    assert denoiser.takes_text == (name != "dit")


def denoiser_pipeline(denoiser, pipeline):
    """The network in the place that the pipeline has it."""
    return type("Loaded", (), {"unet" if hasattr(pipeline, "unet") else "transformer": denoiser.network})


def test_the_options_reach_the_parts(folders):
    _, folder = folders["sd"]
    denoiser = load_denoiser(str(folder), CPU, "bfloat16", negative_prompt="dog", tiled=True, delta_space="eps")
    vae = denoiser.autoencoder.vae
    assert (vae.use_tiling, vae.use_slicing, vae.dtype) == (True, True, torch.float32)
    assert denoiser.network.dtype == torch.bfloat16
    assert (denoiser.texts.negative_prompt, denoiser.diffusion.delta_space) == ("dog", "eps")
    plain = load_denoiser(str(folder), CPU, sliced=False)
    assert (plain.autoencoder.vae.use_tiling, plain.autoencoder.vae.use_slicing) == (False, False)
    latents = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(load_denoiser(str(folder), CPU).decode(latents), plain.decode(latents), rtol=1e-4, atol=1e-4)
    condition = denoiser.condition(texts=["a cat", ""])
    assert condition.text.shape == condition.null_text.shape == (2, 8, 32)
    assert torch.equal(condition.null_text[0], condition.null_text[1])
    assert not torch.equal(condition.null_text[1], condition.text[1])


@pytest.mark.slow
def test_a_compiled_network_gives_the_same(folders):
    _, folder = folders["sd"]
    x, text = torch.randn(1, 4, 16, 16), Condition(text=torch.randn(1, 8, 32))
    plain, compiled = (load_denoiser(str(folder), CPU, compiled=compiled) for compiled in (False, True))
    expected, found = (denoiser(x, 500, text, capture=["middle"]) for denoiser in (plain, compiled))
    torch.testing.assert_close(found.eps, expected.eps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.attention["middle"].q, expected.attention["middle"].q, rtol=1e-4, atol=1e-4)


def test_a_repository_in_the_cache_is_found(folders, tmp_path, monkeypatch):
    repository, commit = tmp_path / "models--own--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folders["sd"][1], repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_denoiser("own/tiny", CPU).shape == (4, 16, 16)


def test_what_is_nowhere_is_said_with_the_command_that_fetches_it(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    with pytest.raises(ValueError, match="own/not-there is neither a folder nor in the cache of huggingface_hub") as raised:
        load_denoiser("own/not-there", CPU)
    assert "hf download own/not-there" in str(raised.value)
    assert "path=FOLDER" in str(raised.value)
    for path in ("not a name", "/not/there/at/all", "folder"):
        with pytest.raises(ValueError, match=f"{path} does not exist; expected a folder"):
            load_denoiser(path, CPU)
    with pytest.raises(ValueError, match="path is missing"):
        load_denoiser(None, CPU)


def rewritten(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def pickled(folder):
    """Replace the safe weights by a pickle of the same."""
    torch.save(unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def truncated(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "is no folder in the format of diffusers: it has no model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
        (lambda f: (f / "model_index.json").write_text("[]"), "is damaged: it is no JSON object"),
        (
            lambda f: rewritten(f, "model_index.json", lambda c: c.update(_class_name="MyPipeline")),
            "is of the class MyPipeline",
        ),
        (lambda f: shutil.rmtree(f / "unet"), "has neither a folder unet nor a folder transformer"),
        (lambda f: (f / "unet" / "config.json").unlink(), "config.json cannot be read"),
        (pickled, "does not load: .*safetensors"),
        (truncated, "does not load: "),
    ],
)
def test_a_damaged_folder_is_said_in_one_sentence(copied, damage, message):
    folder = copied("sd")
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        load_denoiser(str(folder), CPU)
    assert "\n" not in str(raised.value)


def test_another_kind_of_model_than_expected(folders, copied):
    with pytest.raises(ValueError, match=r"is Stable Diffusion XL, but Stable Diffusion 1.x was expected"):
        load_denoiser(str(folders["sdxl"][1]), CPU, expects="sd1")
    with pytest.raises(ValueError, match=r"is DiT, but Stable Diffusion XL was expected"):
        load_denoiser(str(folders["dit"][1]), CPU, expects="sdxl")
    second = copied("sd")
    rewritten(second / "unet", "config.json", lambda c: c.update(cross_attention_dim=1024))
    with pytest.raises(ValueError, match=r"is Stable Diffusion 2.x, but Stable Diffusion 1.x was expected"):
        load_denoiser(str(second), CPU, expects="sd1")
    assert load_denoiser(str(folders["sd"][1]), CPU, expects="sd1").takes_text  # texts of no published width


def test_offloading_needs_a_gpu(folders):
    with pytest.raises(ValueError, match="offload=model needs a GPU"):
        load_denoiser(str(folders["sd"][1]), CPU, offload="model")
    with pytest.raises(ValueError, match="offload must be model, sequential or null"):
        load_denoiser(str(folders["sd"][1]), CPU, offload="disk")


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_models_give_the_same(folders, offload):
    device = torch.device("cuda")
    x, texts = torch.randn(1, 4, 16, 16, device=device), ["a cat"]
    results = []
    for where in (None, offload):
        denoiser = load_denoiser(str(folders["sd"][1]), device, offload=where)
        eps = denoiser(x, 500, denoiser.condition(texts=texts), capture=["middle"]).eps
        results.append((eps, denoiser.decode(eps)))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-4)


def test_without_the_library_one_sentence_has_the_command(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("sag.diffusers.extras.find_spec", lambda name: None if name == "diffusers" else found(name))
    with pytest.raises(
        ValueError, match=r"sag.diffusers.load_denoiser needs the library diffusers: pip install 'sag\[diffusers\]'"
    ):
        sag.diffusers.__getattr__("load_denoiser")  # as the first use of the name
    with pytest.raises(ValueError, match="model=sd15 needs the library diffusers"):
        require("model=sd15")


def test_a_folder_named_like_the_library_is_not_the_library(monkeypatch, tmp_path):
    (tmp_path / "transformers").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "transformers")
    with pytest.raises(ValueError, match="needs the library transformers"):
        require("this")


def test_a_folder_that_lacks_a_part_is_incomplete(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["sd"][1], folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=r"model is incomplete: its model_index\.json names vae, and there is no such folder"):
        load_denoiser(str(folder), CPU)
