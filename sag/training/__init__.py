"""Training of diffusion models and classifiers."""

from sag.training.loop import STATE, Settings, Trainer
from sag.training.losses import Classification, DiffusionLoss, NoisyClassification, Objective
from sag.training.timesteps import LossSecondMoment, TimestepSampler, Uniform

__all__ = [
    "STATE",
    "Classification",
    "DiffusionLoss",
    "LossSecondMoment",
    "NoisyClassification",
    "Objective",
    "Settings",
    "TimestepSampler",
    "Trainer",
    "Uniform",
]
