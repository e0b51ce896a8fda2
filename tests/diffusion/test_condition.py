"""Conditions: what a denoiser is told, with a row for each sample."""

import pytest
import torch
from helpers import SMALL, fill, noise, small_denoiser

from sag.diffusion import Condition, Denoiser, GaussianDiffusion, Schedule
from sag.models import UpsamplingUNet

LABELS, X = torch.tensor([1, 3]), noise(7, 0, (2, 3, 16, 16))
TEXT, LOW = noise(7, 1, (2, 5, 8)), noise(7, 2, (2, 3, 8, 8))


def upsampler():
    network = fill(UpsamplingUNet(**{**SMALL, "in_channels": 6, "num_classes": 4}))
    return Denoiser(network, GaussianDiffusion(Schedule.linear().respace(4)))


def test_null_is_no_class_or_no_text_and_keeps_the_small_image():
    labels = Condition(LABELS, low_res=LOW, null_label=4).null()
    assert labels.labels.tolist() == [4, 4]
    assert labels.low_res is LOW
    assert labels.null().labels.tolist() == [4, 4]
    assert torch.equal(Condition(text=TEXT, null_text=0 * TEXT).null().text, 0 * TEXT)
    for unknown in (Condition(), Condition(LABELS), Condition(text=TEXT), Condition(null_label=4), Condition(low_res=LOW)):
        assert unknown.null() is None


def test_the_small_image_belongs_to_the_condition():
    denoiser = upsampler()
    one, other = (denoiser(X, 2, denoiser.condition(LABELS, low)).eps for low in (LOW, -LOW))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Condition([1, 3]), "labels of a condition must be a tensor, got list"),
        (lambda: Condition(LABELS, null_label="none"), "null_label of a condition must be a whole number, got str"),
        (lambda: Condition(LABELS.float()), r"labels must be \(N,\) int64, got \(2,\) torch.float32"),
        (lambda: Condition(LABELS, low_res=LOW[:1]), "one row per sample in all its fields, got labels 2, low_res 1"),
        (lambda: small_denoiser()(X, 2, LABELS), r"condition must be a Condition, such as Condition\(labels=y\).*got Tensor"),
        (lambda: small_denoiser()(X, 2, Condition(LABELS[:1])), r"the condition has 1 rows \(labels\), but there are 2 images"),
        (lambda: small_denoiser()(X, 2, Condition(text=TEXT)), "this network takes no text"),
        (lambda: small_denoiser()(X, 2, Condition(low_res=LOW)), "this network needs a condition with no low_res"),
        (lambda: upsampler()(X, 2, Condition(LABELS)), "this network needs a condition with low_res"),
    ],
)
def test_what_does_not_fit_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
