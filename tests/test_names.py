"""The names that other programs rely on, and how fast the library comes up."""

import subprocess
import sys

from omegaconf import OmegaConf


def test_public_names():
    from sag.diffusion import DDIM, DDPM, Denoiser, GaussianDiffusion, Schedule, sample
    from sag.guidance import (
        BlurGuidance,
        ClassifierFreeGuidance,
        ClassifierGuidance,
        GuidedDenoiser,
        SelfAttentionGuidance,
    )
    from sag.models import Classifier, UNet

    names = [BlurGuidance, Classifier, ClassifierFreeGuidance, ClassifierGuidance, DDIM, DDPM, Denoiser, GaussianDiffusion,
             GuidedDenoiser, Schedule, SelfAttentionGuidance, UNet, sample]  # fmt: skip
    assert all(callable(name) for name in names)


def test_sample_takes_the_agreed_keys():
    from helpers import ROOT

    config = OmegaConf.load(ROOT / "configs/sampling.yaml")
    groups = {str(key).removeprefix("optional ") for entry in config.defaults if OmegaConf.is_dict(entry) for key in entry}
    agreed = "model classifier guidance sampler num_samples batch_size seed indices precision compile device out"
    assert set(agreed.split()) <= groups | set(config)
    for sampler in ("ddpm", "ddim"):
        assert "steps" in OmegaConf.load(ROOT / f"configs/sampler/{sampler}.yaml")


def test_the_library_needs_no_configuration_library():
    code = "import sys, sag.guidance, sag.noise, sag.storage; print({'hydra', 'omegaconf'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
