"""Guidance: techniques that turn a denoiser into a better one, in any combination."""

from sag.guidance.base import Guidance, GuidanceState, GuidedDenoiser, ScoreGuidance, WeakGuidance
from sag.guidance.blur import BlurGuidance, gaussian_blur
from sag.guidance.classifier import ClassifierFreeGuidance, ClassifierGuidance
from sag.guidance.sag import SelfAttentionGuidance, attention_mass

__all__ = [
    "BlurGuidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Guidance",
    "GuidanceState",
    "GuidedDenoiser",
    "ScoreGuidance",
    "SelfAttentionGuidance",
    "WeakGuidance",
    "attention_mass",
    "gaussian_blur",
]
