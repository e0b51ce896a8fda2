"""Samplers of flows on Gaussian data, whose velocity, score and end points are known, and against SiT's own conventions."""

import numpy as np
import pytest
import torch

from sag.diffusion import DDIM, Denoiser, GaussianDiffusion, Schedule, sample
from sag.diffusion.flow_samplers import EulerMaruyama, Heun
from sag.guidance import GuidedDenoiser
from sag.models import UNetOutput

COVARIANCE = torch.tensor([[0.9, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.6, -1.1], dtype=torch.float64)
X_T = torch.tensor([[-2.0, 0.5], [0.3, 1.8], [1.1, -1.4]], dtype=torch.float64)


class GaussianVelocity:
    """The best possible network for two-pixel "images" of this Gaussian: it predicts noise minus image; tau is the noise."""

    image_channels, image_size, num_classes, attention_layers = 2, 1, None, {}

    def __init__(self, tau_scale=1.0):
        self.tau_scale, self.asked = tau_scale, []

    def __call__(self, x, tau, y, *, capture, attend):
        u = float(tau[0]) / self.tau_scale
        self.asked.append(u)
        off = x.flatten(1) - (1 - u) * MEAN
        of_xt = torch.linalg.inv((1 - u) ** 2 * COVARIANCE + u**2 * torch.eye(2))
        eps, x_0 = u * off @ of_xt, MEAN + (1 - u) * off @ of_xt @ COVARIANCE
        return UNetOutput((eps - x_0).view(x.shape), {})


def denoiser(schedule=None, tau_scale=1.0):
    diffusion = GaussianDiffusion(schedule or Schedule.flow(1000, tau_scale), None, "flow", clip_denoised=False)
    return Denoiser(GaussianVelocity(tau_scale), diffusion)


def no_noise(t):
    pytest.fail("a deterministic sampler asked for noise")


def ends(sampler, x_T=X_T, noise=no_noise, model=None):
    *_, last = sample(model or denoiser(), sampler, x_T.view(-1, 2, 1, 1), noise=noise)
    return last.x.flatten(1)


def exact_ends(x_T=X_T):
    """Where the differential equation takes x_T: the deviations along each principal axis become those of the data."""
    variances, axes = torch.linalg.eigh(COVARIANCE)
    return MEAN + x_T @ axes @ torch.diag(variances.sqrt()) @ axes.T


def velocity_and_score(x, t):
    """Of the same data in SiT's convention, t = 1 for the image: E[image - noise | x], and the gradient of log p(x)."""
    covariance = t**2 * COVARIANCE + (1 - t) ** 2 * torch.eye(2)
    score = -torch.linalg.solve(covariance, (x - t * MEAN).T).T
    image = MEAN - t * score @ COVARIANCE
    return image + (1 - t) * score, score  # the noise is -(1 - t) score


def test_ddim_is_eulers_method():
    x = X_T
    for t in np.arange(40) / 40:
        x = x + velocity_and_score(x, t)[0] / 40
    torch.testing.assert_close(ends(DDIM(40), model=denoiser(Schedule.flow(40))), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sampler", "order"), [(Heun, 2), (lambda n: EulerMaruyama(n, strength=0, last_step=1 / n), 1)])
def test_errors_fall_with_the_order_of_the_sampler(sampler, order):
    counts = [20, 40, 80, 160]
    errors = [float((ends(sampler(count)) - exact_ends()).abs().max()) for count in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


def test_without_noise_the_stochastic_sampler_is_eulers_method():
    found = ends(EulerMaruyama(40, strength=0, last_step=1 / 40))
    torch.testing.assert_close(found, ends(DDIM(40), model=denoiser(Schedule.flow(40))), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_the_stochastic_sampler_is_that_of_sit(strength):
    """SiT's program: from t = 0 in 249 equal steps to t = 0.96, then the drift alone for the last 0.04."""
    numbers = torch.randn(250, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, times = X_T, np.linspace(0, 0.96, 250)
    length = times[1] - times[0]
    for i, t in enumerate(times):
        velocity, score = velocity_and_score(x, t)
        diffusion = strength * (1 - t)
        drift = velocity + diffusion * score
        x = x + drift * (0.04 if i == 249 else length)
        if i < 249:
            x = x + (2 * diffusion * length) ** 0.5 * numbers[249 - i]
    found = ends(EulerMaruyama(250, strength), noise=lambda t: numbers[t].view(3, 2, 1, 1))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


def test_the_stochastic_sampler_keeps_mean_and_covariance():
    generator = torch.Generator().manual_seed(0)

    def noise(t=None):
        return torch.randn(20_000, 2, 1, 1, generator=generator, dtype=torch.float64)

    x = ends(EulerMaruyama(250), noise().flatten(1), noise)
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.03)
    np.testing.assert_allclose(x.T.cov(), COVARIANCE, atol=0.04)


@pytest.mark.parametrize("tau_scale", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("sampler", "asked"),
    [
        (EulerMaruyama(5, last_step=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (EulerMaruyama("3", last_step=0.5), [1, 0.75, 0.5]),
        (Heun(4), [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_the_network_is_asked_at_evenly_spread_times(sampler, asked, tau_scale):
    model = denoiser(tau_scale=tau_scale)
    ends(sampler, noise=lambda t: torch.zeros(3, 2, 1, 1), model=model)
    np.testing.assert_allclose(model.network.asked, asked, atol=1e-6)


@pytest.mark.parametrize("sampler", [EulerMaruyama(7), Heun(7)])
def test_a_second_respacing_changes_nothing(sampler):
    once = sampler.respace(GuidedDenoiser(denoiser(), []))
    assert sampler.respace(once) is once
    assert len(once.diffusion.schedule) == 7
    other = EulerMaruyama(9).respace(once)
    np.testing.assert_allclose(other.diffusion.schedule.tau, np.linspace(0.04, 1, 9))
    assert other.diffusion.schedule.time[-1] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Heun("ddim25").respace(denoiser()), "whole number from 2 on, got 'ddim25'"),
        (lambda: Heun(1).respace(denoiser()), "whole number from 2 on, got '1'"),
        (lambda: EulerMaruyama(9).respace(denoiser(Schedule.linear(1000))), "for flows.*use sampler=ddim or sampler=ddpm"),
        (lambda: EulerMaruyama(9, last_step=1.0), "last_step must be more than 0 and less than 1, got 1.0"),
        (lambda: EulerMaruyama(9, strength=-0.5), "strength must be at least 0, got -0.5"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
