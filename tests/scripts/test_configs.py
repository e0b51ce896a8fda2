"""Every config builds what it says, at the published shapes and settings."""

import pytest
import torch
from helpers import golden, shapes
from hydra.utils import instantiate

import sag
from sag.build.groups import choices, load_config
from sag.checkpoints import load_checkpoint
from sag.diffusion import Denoiser
from sag.guidance import GuidedDenoiser
from sag.models import DiT, SiT
from sag.storage import without_digest

MODELS = [name for name in choices("model") if name != "flags"]
CLASSIFIERS = choices("classifier")
PUBLISHED, IDDPM, OTHERS = golden("published")[0], golden("iddpm")[0], golden("classifier")[0]
LSUN = {f"adm_lsun_{name}": PUBLISHED["lsun"] for name in ("bedroom", "cat", "horse", "horse_nodropout")}
GOLDEN_OF = {
    "adm_imagenet64": PUBLISHED["imagenet64"],
    "adm_imagenet128": PUBLISHED["imagenet128"],
    "adm_imagenet256": PUBLISHED["imagenet256_cond"],
    "adm_imagenet256_uncond": PUBLISHED["imagenet256_uncond"],
    "adm_imagenet512": PUBLISHED["imagenet512"],
    **LSUN,
    "adm_upsample_64_256": OTHERS["upsamplers"]["64_256_upsampler"],
    "adm_upsample_128_512": OTHERS["upsamplers"]["128_512_upsampler"],
    "iddpm_imagenet64_uncond": IDDPM["iddpm_imagenet64_uncond"],
    "iddpm_imagenet64_cond": IDDPM["iddpm_imagenet64_cond"],
    "iddpm_cifar10": IDDPM["iddpm_cifar10_uncond"],
    "iddpm_lsun_bedroom_1200k": IDDPM["iddpm_lsun_bedroom"],
    "iddpm_lsun_bedroom_2400k": IDDPM["iddpm_lsun_bedroom"],
}
TRANSFORMERS = {  # image size and the end of the address; tests/models/test_dit.py compares their entries
    "dit_xl2_256": (256, "DiT-XL-2-256x256.pt"),
    "dit_xl2_512": (512, "DiT-XL-2-512x512.pt"),
    "sit_xl2_256": (256, "SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0"),
}
FOLDERS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd35_medium": "stabilityai/stable-diffusion-3.5-medium",
    "own_diffusers": "a/b",
}
BUNDLED = ["fashion32", "fashion32_latent", "fashion32_weak"]
FILES = {
    "adm_imagenet64": "64x64_diffusion.pt",
    "adm_imagenet128": "128x128_diffusion.pt",
    "adm_imagenet256": "256x256_diffusion.pt",
    "adm_imagenet256_uncond": "256x256_diffusion_uncond.pt",
    "adm_imagenet512": "512x512_diffusion.pt",
    "adm_lsun_bedroom": "lsun_bedroom.pt",
    "adm_lsun_cat": "lsun_cat.pt",
    "adm_lsun_horse": "lsun_horse.pt",
    "adm_lsun_horse_nodropout": "lsun_horse_nodropout.pt",
    "adm_upsample_64_256": "64_256_upsampler.pt",
    "adm_upsample_128_512": "128_512_upsampler.pt",
    "iddpm_imagenet64_uncond": "imagenet64_uncond_100M_1500K.pt",
    "iddpm_imagenet64_cond": "imagenet64_cond_270M_250K.pt",
    "iddpm_cifar10": "cifar10_uncond_50M_500K.pt",
    "iddpm_lsun_bedroom_1200k": "lsun_uncond_100M_1200K_bs128.pt",
    "iddpm_lsun_bedroom_2400k": "lsun_uncond_100M_2400K_bs64.pt",
}
PUBLISHED_SAG = {  # scale, layer, sigma of each published row with one setting
    "adm_imagenet128": (0.1, "output.8", 3),
    "adm_imagenet256_uncond": (0.5, "output.2", 9),
    "adm_imagenet256": (0.2, "output.2", 9),
    "adm_lsun_cat": (0.05, "output.2", 9),
    "adm_lsun_horse": (0.01, "output.2", 9),
}


def composed(*overrides):
    return sag.compose("sample", overrides)


def test_there_is_a_config_for_every_published_checkpoint():
    assert sorted([*GOLDEN_OF, *BUNDLED, *TRANSFORMERS, *FOLDERS]) == MODELS
    assert sorted([*(f"adm_imagenet{size}" for size in (64, 128, 256, 512)), "fashion32"]) == CLASSIFIERS


@pytest.mark.parametrize("name", FOLDERS)
def test_models_of_the_library_diffusers_are_folders_with_the_defaults_of_latents(name):
    cfg = composed(f"model={name}", *(["path=a/b"] if name == "own_diffusers" else []), "guidance=[sag,blur]")
    assert cfg.model.denoiser.path == cfg.model.checkpoint == FOLDERS[name]
    for technique in cfg.guidance.values():
        assert (technique.scale, technique.blur_sigma, technique.blur_kernel) == (0.75, 1, 9)
    assert cfg.guidance.sag.layer == ("block.6.image" if name == "sd35_medium" else "middle")
    moved = composed(f"model={name}", "path=/data/mine", "negative_prompt=a hat")
    assert (moved.model.name, moved.model.denoiser.path, moved.model.denoiser.negative_prompt) == (
        "own_mine",
        "/data/mine",
        "a hat",
    )


@pytest.mark.parametrize("name", [*GOLDEN_OF, *BUNDLED])
def test_a_model_config_builds_the_published_network_and_schedule(name):
    cfg = composed(f"model={name}")
    with torch.device("meta"):
        network = instantiate(cfg.model.network, _convert_="all")
    assert cfg.model.name == name
    assert cfg.guidance.sag.layer in network.attention_layers
    diffusion = instantiate(cfg.model.diffusion)
    assert len(diffusion.respace(cfg.sampler.steps).schedule) == (50 if name in BUNDLED else 250)
    if name in BUNDLED:
        assert shapes(network) == {key: list(value.shape) for key, value in load_checkpoint(name).items()}
        return
    flags = GOLDEN_OF[name]["flags"]
    assert shapes(network) == GOLDEN_OF[name]["keys"]
    assert without_digest(cfg.model.checkpoint).endswith(f"/{'jul' if name.startswith('adm') else 'march'}-2021/{FILES[name]}")
    assert diffusion.schedule.training_steps == flags.get("diffusion_steps", 1000)
    counted = 1000 if flags.get("rescale_timesteps", False) else diffusion.schedule.training_steps
    assert diffusion.schedule.tau[-1] == pytest.approx(counted * (1 - 1 / diffusion.schedule.training_steps))
    assert cfg.model.diffusion.schedule._target_.endswith(flags["noise_schedule"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_config_builds_network_autoencoder_and_diffusion(name):
    cfg = composed(f"model={name}", "guidance=[cfg,sag]")
    pixels, file = TRANSFORMERS[name]
    assert (cfg.model.name, cfg.model.checkpoint.rpartition("/")[2]) == (name, file)
    with torch.device("meta"):
        network = instantiate(cfg.model.network, _convert_="all")
        autoencoder = instantiate(cfg.model.autoencoder.network, _convert_="all")
    denoiser = Denoiser(network, instantiate(cfg.model.diffusion), cfg.model.null_label, autoencoder)
    assert denoiser.shape == (4, pixels // 8, pixels // 8)
    assert denoiser.sample_size([pixels, 2 * pixels]) == (pixels // 8, pixels // 4)
    with pytest.raises(ValueError, match="both divisible by 16"):
        denoiser.sample_size([pixels, pixels + 8])
    assert (denoiser.num_classes, denoiser.null_label, autoencoder.scale) == (1001, 1000, 0.18215)
    guidance = [instantiate(node, _convert_="all") for node in cfg.guidance.values()]
    guided = GuidedDenoiser(denoiser.respace(cfg.sampler.steps), guidance)
    assert len(guided.diffusion.schedule) == 250
    assert (cfg.guidance.cfg.channels, cfg.guidance.sag.blur_sigma, cfg.guidance.sag.blur_kernel) == (3, 1, 9)
    flow = name.startswith("sit")
    assert type(network) is (SiT if flow else DiT)
    assert guided.diffusion.schedule.tau[-1] == (1 if flow else 999)
    assert (guided.diffusion.variance, guided.diffusion.prediction) == ((None, "flow") if flow else ("learned_range", "eps"))
    assert not guided.diffusion.clip_denoised


@pytest.mark.parametrize("sampler", [["heun"], ["euler_maruyama"], ["ddim", "sampler.steps=50"]])
def test_a_flow_is_sampled_from_pure_noise(sampler):
    cfg = composed("model=sit_xl2_256", f"sampler={sampler[0]}", *sampler[1:])
    denoiser = Denoiser(None, instantiate(cfg.model.diffusion))
    assert instantiate(cfg.sampler).respace(denoiser).diffusion.schedule.noise[-1] == 1


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in BUNDLED])
def test_a_classifier_config_builds_the_published_network(name):
    cfg = load_config("classifier", name)
    size = cfg.network.image_size
    with torch.device("meta"):
        assert shapes(instantiate(cfg.network, _convert_="all")) == OTHERS["classifiers"][f"{size}x{size}_classifier"]["keys"]
    assert cfg.checkpoint.endswith(f"/jul-2021/{size}x{size}_classifier.pt")


@pytest.mark.parametrize("name", PUBLISHED_SAG)
def test_sag_settings_are_the_published_ones(name):
    sag = composed(f"model={name}").guidance.sag
    assert (sag.scale, sag.layer, sag.blur_sigma) == PUBLISHED_SAG[name]
    assert (sag.blur_kernel, sag.threshold, sag.blend, sag.mask) == (31, 1.0, "clean", "attention")


def test_the_classifier_published_with_a_model_comes_with_it():
    assert composed("model=adm_imagenet128").classifier.name == "adm_imagenet128"
    assert composed("model=adm_imagenet256_uncond").classifier is None
    assert composed("model=adm_imagenet256_uncond", "classifier=adm_imagenet256").classifier.network.image_size == 256


@pytest.mark.parametrize("guidance", ["[]", "[sag]", "[blur]", "[cfg]", "[sag,classifier]", "[sag,blur,classifier,cfg]"])
def test_guidance_is_any_list(guidance):
    cfg = composed("model=adm_imagenet64", f"guidance={guidance}")
    assert list(cfg.get("guidance") or {}) == [name for name in guidance.strip("[]").split(",") if name]


def test_the_hash_in_an_address_changes_neither_the_model_nor_the_samples():
    hashed = sag.compose("sample", ["model=adm_imagenet256_uncond"])
    plain = without_digest(hashed.model.checkpoint)
    assert plain != hashed.model.checkpoint
    for given in (plain, f"elsewhere/{plain.rpartition('/')[2]}"):  # the second: a copy
        cfg = sag.compose("sample", ["model=adm_imagenet256_uncond", f"model.checkpoint={given}"])
        assert cfg.model.name == "adm_imagenet256_uncond"
    cfg = sag.compose("sample", ["model=adm_imagenet256_uncond", f"model.checkpoint={plain}"])
    assert sag.build.identity(cfg) == sag.build.identity(hashed)
    assert sag.build.out_folder(cfg) == sag.build.out_folder(hashed)
