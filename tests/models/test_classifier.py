"""The noisy-image classifier against the reference program's logits and gradients."""

import pytest
import torch
from helpers import fill, golden, noise, relative_error, shapes, small_classifier

from sag.models import Classifier

CASES, ARRAYS = golden("classifier")
CASES = CASES["classifiers"]


@pytest.mark.parametrize("name", CASES)
def test_published_entries_are_those_of_the_network(name):
    with torch.device("meta"):
        assert shapes(Classifier.from_flags(CASES[name]["flags"])) == CASES[name]["keys"]


@pytest.mark.parametrize("name", ["attention", "spatial", "adaptive"])
def test_logits_and_gradient_are_those_of_the_reference(name):
    network = fill(Classifier.from_flags(CASES[name]["flags"]))
    x = noise(1, 0, (2, 3, 64, 64)).requires_grad_()
    logits = network(x, torch.tensor([17.0, 803.0]))
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[[0, 1], [3, 977]].sum(), x)
    assert relative_error(logits.detach(), ARRAYS[f"classifier_{name}/logits"]) < 1e-4
    assert relative_error(gradient, ARRAYS[f"classifier_{name}/grad"]) < 1e-4


def test_the_spatial_pools_see_the_same_features_through_another_head():
    x, tau = noise(1, 0, (2, 3, 16, 16)), torch.tensor([17.0, 803.0])
    first, second = (small_classifier(pool=pool) for pool in ("spatial", "spatial_v2"))
    seen = []
    for network in (first, second):
        network.out[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        assert network(x, tau).shape == (2, 4)
    assert torch.equal(*seen)
    assert seen[0].shape == (2, sum(first.skips) + first.width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_finite_differences(dtype):
    network = small_classifier()
    x, tau = noise(1, 0, (1, 3, 16, 16)).requires_grad_(), torch.tensor([500.0])

    def log_p(image):
        return network(image, tau).log_softmax(-1)[0, 2]

    direction = noise(2, 0, x.shape)
    slope = (log_p(x + 1e-2 * direction) - log_p(x - 1e-2 * direction)).item() / 2e-2
    network.set_precision(dtype)
    (gradient,) = torch.autograd.grad(log_p(x), x)
    assert gradient.dtype == torch.float32
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2 if dtype == torch.float32 else 0.3)


def test_a_wrong_size_and_an_unknown_pool_are_named():
    with pytest.raises(ValueError, match=r"takes images of shape \(3, 16, 16\), got \(3, 32, 32\)"):
        small_classifier()(noise(1, 0, (1, 3, 32, 32)), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="unknown classifier pool 'mean'; expected one of attention, adaptive"):
        small_classifier(pool="mean")
