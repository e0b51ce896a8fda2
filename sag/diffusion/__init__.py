"""The diffusion process: schedules, closed forms, conditions, denoisers and samplers."""

from sag.diffusion.condition import Condition
from sag.diffusion.denoiser import AutoencoderLike, Denoiser, DenoiserLike, Memory, Model, Prediction, Remembered
from sag.diffusion.gaussian import GaussianDiffusion
from sag.diffusion.samplers import DDIM, DDPM, Sampler, Step, sample
from sag.diffusion.schedule import Schedule

__all__ = [
    "DDIM",
    "DDPM",
    "AutoencoderLike",
    "Condition",
    "Denoiser",
    "DenoiserLike",
    "GaussianDiffusion",
    "Memory",
    "Model",
    "Prediction",
    "Remembered",
    "Sampler",
    "Schedule",
    "Step",
    "sample",
]
