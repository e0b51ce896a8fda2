"""The names that other programs rely on, and how fast the library comes up."""

import dataclasses
import inspect
import pkgutil
import subprocess
import sys

import pytest
from helpers import ROOT
from omegaconf import OmegaConf

PARAMETERS = {
    "sag.compose": "config_name overrides",
    "sag.build.compose": "config_name overrides",
    "sag.build.job": "cfg",
    "sag.build.denoiser": "cfg",
    "sag.sampling.run": "job out process stop watch",
    "sag.sampling.progress": "out minutes",
    "sag.sampling.moments": "job layers count",
    "sag.diffusion.DDIM": "steps eta",
    "sag.diffusion.DDPM": "steps",
    "sag.diffusion.Denoiser": "network diffusion null_label",
    "sag.diffusion.GaussianDiffusion": "schedule variance prediction clip_denoised",
    "sag.diffusion.Schedule": "signal noise tau",
    "sag.diffusion.sample": "denoiser sampler x_T condition noise",
    "evaluations.web.comparison.SideBySide": "overrides config_dir count",
    "sag.guidance.BlurGuidance": "scale blur_sigma blur_kernel branch interval",
    "sag.guidance.ClassifierFreeGuidance": "scale interval",
    "sag.guidance.ClassifierGuidance": "classifier scale interval",
    "sag.guidance.GuidedDenoiser": "denoiser guidance random batched",
    "sag.guidance.SelfAttentionGuidance": "scale layer blur_sigma blur_kernel threshold heads blend branch mask interval",
    "sag.models.Classifier.from_flags": "flags",
    "sag.models.UNet.from_flags": "flags",
    "evaluations.score_files.score_files": "samples reference metrics settings extractor published device batch_size out",
}
KEYS = {
    "benchmark": "part model classifier sampler guidance batch_size rounds samples precisions compile device out",
    "bundle": "checkpoint dtype out",
    "demo": "num_samples common rows seed device out",
    "download": "what parts dry_run",
    "evaluate": "extractor published samples reference metrics batch_size device out self_check is_splits is_shuffle "
    "neighbours distance_dtype kid_subsets kid_subset_size density_neighbours",
    "make_reference": "extractor data num_images limit seed compact batch_size device out",
    "report": "results tables num_samples out",
    "reproduce": "table rows seeds num_samples common device dry_run keep_samples out results",
    "sample": "model classifier sampler guidance num_samples batch_size seed indices size bits labels low_res precision "
    "compile device out duplicates",
    "status": "minutes out",
    "sweep": "model classifier sampler guidance num_samples batch_size seed indices size bits labels low_res precision "
    "compile device out duplicates name scoring objective results",
    "train": "model classifier task data settings size start compile device save_minutes log_every grid_steps out",
    "web": "model classifier sampler guidance seed indices size labels low_res precision compile device host port browser "
    "moments classes",
    "visualize": "model classifier sampler guidance samples seed size labels layers moments precision device out list",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_functions_and_classes_keep_their_names_and_parameters(name):
    """New parameters may come after those that callers know."""
    found = list(inspect.signature(pkgutil.resolve_name(name)).parameters)
    agreed = PARAMETERS[name].split()
    assert found[: len(agreed)] == agreed


def test_there_are_14_programs():
    assert {path.stem for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()} == KEYS.keys()


@pytest.mark.parametrize("name", KEYS)
def test_programs_keep_their_keys(name):
    schema = "".join(word.capitalize() for word in name.split("_")) + "Config"
    found = {field.name for field in dataclasses.fields(pkgutil.resolve_name(f"scripts.{name}.{schema}"))}
    assert found >= set(KEYS[name].split())


@pytest.mark.parametrize("name", KEYS)
def test_programs_are_commands_of_an_installation(name):
    line = f'sag-{name.replace("_", "-")} = "scripts.{name}:command"'
    assert line in (ROOT / "pyproject.toml").read_text().splitlines()
    assert callable(pkgutil.resolve_name(f"scripts.{name}.command"))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samplers_have_steps(sampler):
    assert "steps" in OmegaConf.load(ROOT / f"configs/sampler/{sampler}.yaml")


def test_the_library_needs_no_configuration_library():
    code = "import sys, sag.guidance, sag.noise, sag.storage; print({'hydra', 'omegaconf'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
