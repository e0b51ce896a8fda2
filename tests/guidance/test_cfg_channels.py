"""Classifier-free guidance of the first channels only, as in the programs of DiT and SiT."""

import pytest
import torch
from helpers import noise

import sag
from sag.diffusion import Condition, Denoiser, GaussianDiffusion, Schedule
from sag.guidance import ClassifierFreeGuidance, GuidedDenoiser
from sag.models import DiT

X_T, LABELS = noise(5, 0, (2, 4, 4, 4)), torch.tensor([1, 2])


def denoiser(prediction="eps"):
    torch.manual_seed(0)
    network = DiT(image_size=4, in_channels=4, out_channels=8 if prediction == "eps" else 4, num_classes=4,
                  width=16, depth=1, heads=2)  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.requires_grad_(False)
    if prediction == "eps":
        return Denoiser(network, GaussianDiffusion(Schedule.linear(), clip_denoised=False), 3)
    return Denoiser(network, GaussianDiffusion(Schedule.flow(), None, prediction, clip_denoised=False), 3)


def test_the_other_channels_and_the_variance_are_those_of_the_condition():
    """What DiT's program does with the halves of its batch: 3 channels of eps are guided, all others are the first half's."""
    model = denoiser()
    tau = torch.full((4,), 499.0)
    output = model.network(X_T.repeat(2, 1, 1, 1), tau, torch.tensor([1, 2, 3, 3])).sample
    cond, uncond = output.chunk(2)
    cfg_scale = 1.5
    expected = torch.cat([uncond[:, :3] + cfg_scale * (cond[:, :3] - uncond[:, :3]), cond[:, 3:]], dim=1)
    found = GuidedDenoiser(model, [ClassifierFreeGuidance(cfg_scale - 1, channels=3)])(
        X_T, 499, Condition(LABELS, null_label=3)
    )
    torch.testing.assert_close(found.eps, expected[:, :4], rtol=0, atol=1e-5)
    variance = model.diffusion.learned_log_variance(expected[:, 4:], 499)
    torch.testing.assert_close(found.log_variance, variance, rtol=0, atol=1e-5)
    assert float((cond - uncond)[:, 3].abs().max()) > 1e-3


def test_velocities_are_guided_in_the_same_channels():
    model = denoiser("flow")
    condition = Condition(LABELS, null_label=3)
    found = GuidedDenoiser(model, [ClassifierFreeGuidance(0.5, channels=3)])(X_T, 499, condition)
    every = GuidedDenoiser(model, [ClassifierFreeGuidance(0.5)])(X_T, 499, condition)
    plain = model(X_T, 499, condition)
    for name in ("eps", "x_0"):
        guided, of_all, unguided = (getattr(p, name) for p in (found, every, plain))
        torch.testing.assert_close(guided[:, :3], of_all[:, :3], rtol=0, atol=1e-6)
        torch.testing.assert_close(guided[:, 3], unguided[:, 3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_all_channels_are_guided_by_default(prediction):
    model, condition = denoiser(prediction), Condition(LABELS, null_label=3)
    first, *others = (
        GuidedDenoiser(model, [cfg])(X_T, 499, condition).eps
        for cfg in (
            ClassifierFreeGuidance(0.5),
            ClassifierFreeGuidance(0.5, channels="all"),
            ClassifierFreeGuidance(0.5, channels=4),
        )
    )
    for other in others:
        assert torch.equal(first, other)
    assert not torch.equal(first, GuidedDenoiser(model, [ClassifierFreeGuidance(0.5, channels=1)])(X_T, 499, condition).eps)


@pytest.mark.parametrize("channels", [0, -1, "three", 1.5])
def test_other_values_are_refused(channels):
    with pytest.raises(ValueError, match=f"channels must be a number of channels or all, got {channels!r}"):
        ClassifierFreeGuidance(1.0, channels=channels)


def test_more_channels_than_there_are_are_refused():
    with pytest.raises(ValueError, match="channels=5 of classifier-free guidance is more than the model's 4"):
        GuidedDenoiser(denoiser(), [ClassifierFreeGuidance(1.0, channels=5)])


def test_settings_name_the_channels_only_where_they_are_not_all():
    """So the hashes of runs that were recorded before this option existed stay the same."""

    def recorded(*overrides):
        return sag.build.identity(sag.compose("sample", ["guidance=[cfg]", *overrides]))["guidance"]["cfg"]

    former = {"_target_": "sag.guidance.ClassifierFreeGuidance", "scale": 1.0, "interval": [0.0, 1.0]}
    assert recorded("model=fashion32") == former
    assert recorded("model=fashion32", "guidance.cfg.channels=1") == {**former, "channels": 1}
    for model in ("dit_xl2_256", "dit_xl2_512", "sit_xl2_256"):
        assert recorded(f"model={model}") == {**former, "channels": 3}
        assert recorded(f"model={model}", "guidance.cfg.channels=all") == former
