"""Guidance: techniques that improve a denoiser's predictions, in any combination."""

from sag.guidance.base import DifferenceTransform, Guidance, GuidanceState, ScoreGuidance, WeakGuidance
from sag.guidance.batch import Question
from sag.guidance.blur import BlurGuidance, gaussian_blur
from sag.guidance.classifier import ClassifierFreeGuidance, ClassifierGuidance
from sag.guidance.guided import GuidedDenoiser
from sag.guidance.rescale import GuidanceRescale
from sag.guidance.sag import SelfAttentionGuidance, attention_mass
from sag.guidance.scale import ScaleSchedule

__all__ = [
    "BlurGuidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DifferenceTransform",
    "Guidance",
    "GuidanceRescale",
    "GuidanceState",
    "GuidedDenoiser",
    "Question",
    "ScaleSchedule",
    "ScoreGuidance",
    "SelfAttentionGuidance",
    "WeakGuidance",
    "attention_mass",
    "gaussian_blur",
]
