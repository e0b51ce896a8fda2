"""Training of diffusion models and classifiers."""

from sag.training.latents import OfLatents, Reconstruction, latent_scale
from sag.training.loop import STATE, Settings, Trainer
from sag.training.losses import Classification, DiffusionLoss, NoisyClassification, Objective
from sag.training.pictures import Pictures, reconstructions
from sag.training.runner import Trained, train
from sag.training.timesteps import LossSecondMoment, TimestepSampler, Uniform

__all__ = [
    "STATE",
    "Classification",
    "DiffusionLoss",
    "LossSecondMoment",
    "NoisyClassification",
    "Objective",
    "OfLatents",
    "Pictures",
    "Reconstruction",
    "Settings",
    "TimestepSampler",
    "Trained",
    "Trainer",
    "Uniform",
    "latent_scale",
    "reconstructions",
    "train",
]
