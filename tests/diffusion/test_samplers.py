"""Samplers against exact Gaussian data and the reference programs' trajectories."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import fill, golden, noise, relative_error, small_denoiser, small_unet

from sag.diffusion import DDIM, DDPM, Denoiser, GaussianDiffusion, Prediction, Schedule, sample
from sag.guidance import GuidedDenoiser
from sag.models import UNet

MEAN = torch.tensor([0.6, -1.1], dtype=torch.float32)
COVARIANCE = torch.tensor([[0.9, 0.5], [0.5, 0.6]], dtype=torch.float32)


class ExactDenoiser:
    """The best possible denoiser of two-pixel "images" that are Gaussian with MEAN and COVARIANCE."""

    shape = (2, 1, 1)
    diffusion = GaussianDiffusion(Schedule.linear(), "fixed_small", clip_denoised=False)

    def respace(self, steps):
        respaced = ExactDenoiser()
        respaced.diffusion = self.diffusion.respace(steps)
        return respaced

    def __call__(self, x_t, t, condition=None, *, capture=(), attend=None, memory=None):
        alpha_bar = float(self.diffusion.schedule.alpha_bar[t])
        of_xt = torch.linalg.inv(alpha_bar * COVARIANCE + (1 - alpha_bar) * torch.eye(2))
        eps = (1 - alpha_bar) ** 0.5 * (x_t.flatten(1) - alpha_bar**0.5 * MEAN) @ of_xt
        return Prediction(eps.view(x_t.shape), self.diffusion.fixed_log_variance(t, x_t))


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(DDPM(1000), marks=pytest.mark.slow), DDIM(1000), DDIM(1000, eta=1.0)],
    ids=["ddpm", "ddim", "ddim-eta1"],
)
def test_gaussian_data_comes_back_with_its_mean_and_covariance(sampler):
    n = 40000
    x_T = noise(3, 1000, (n, 2, 1, 1))
    *_, last = sample(ExactDenoiser(), sampler, x_T, noise=lambda t: noise(4, t, (n, 2, 1, 1)))
    x = last.x.flatten(1).double()
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(x.T.cov(), COVARIANCE, atol=0.03)


def test_ddim_without_randomness_is_the_exact_affine_map():
    """On Gaussian data DDIM is affine, so three points give its mean and covariance without sampling error."""
    x_T = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(3, 2, 1, 1)
    *_, last = sample(ExactDenoiser(), DDIM(1000), x_T, noise=lambda t: pytest.fail("DDIM with eta = 0 asked for noise"))
    mean, *ends = last.x.flatten(1)
    matrix = torch.stack([end - mean for end in ends], dim=1)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(matrix @ matrix.T, COVARIANCE, atol=0.01)


def test_the_trajectory_of_iddpm_cifar10_is_that_of_the_reference():
    cases, arrays = golden("iddpm")
    flags = cases["iddpm_cifar10_uncond"]["flags"]
    denoiser = Denoiser(fill(UNet.from_flags(flags)), GaussianDiffusion.from_flags(flags).respace(10))
    shape = (2, 3, 32, 32)
    *_, last = sample(denoiser, DDPM(10), noise(7, 0, shape), noise=lambda t: noise(11, t, shape))
    assert relative_error(last.x, arrays["iddpm_cifar10_uncond/ddpm_10"]) < 1e-3


def test_eta_is_the_share_of_ddpms_noise():
    denoiser = small_denoiser()
    x = noise(7, 0, (1, 3, 16, 16))
    prediction = denoiser(x, 2)
    zero, half = (
        DDIM(4, eta).step(denoiser.diffusion, x, 2, prediction, lambda t: torch.zeros_like(x)).x for eta in (0.0, 0.5)
    )
    noisy = DDIM(4, 0.5).step(denoiser.diffusion, x, 2, prediction, lambda t: torch.ones_like(x)).x
    sigma = 0.5 * denoiser.diffusion.schedule.posterior_variance[2] ** 0.5
    torch.testing.assert_close(noisy - half, torch.full_like(x, sigma))
    assert not torch.equal(zero, half)


def test_ddpm_takes_the_posteriors_variance_where_the_denoiser_says_nothing_of_it():
    base = small_denoiser(out_channels=3)
    x, score = noise(7, 0, (1, 3, 16, 16)), noise(7, 1, (1, 3, 16, 16))
    ends = []
    for variance in ("fixed_small", None):
        diffusion = GaussianDiffusion(base.diffusion.schedule, variance)
        prediction = replace(Denoiser(base.network, diffusion)(x, 2), score=score)
        ends.append(DDPM(4).step(diffusion, x, 2, prediction, lambda t: x).x)
    assert prediction.log_variance is None
    assert torch.equal(*ends)


@pytest.mark.parametrize(("variance", "channels"), [("learned_range", 3), ("fixed_small", 6), (None, 6)])
def test_a_network_of_other_channels_than_the_variance_needs_is_refused(variance, channels):
    denoiser = Denoiser(small_unet(out_channels=channels), GaussianDiffusion(Schedule.linear(), variance))
    with pytest.raises(ValueError, match=f"images of 3 channels gives {9 - channels} channels, and this one gives {channels}"):
        denoiser(noise(7, 0, (1, 3, 16, 16)), 2)


def test_ddpm_refuses_a_path_without_betas():
    diffusion = GaussianDiffusion(Schedule.flow(4), None, "flow")
    x = noise(7, 0, (1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"only a variance-preserving schedule has betas.*DDIM \(sampler=ddim\)"):
        DDPM(4).step(diffusion, x, 2, Prediction(x, x_0=x), lambda t: x)


def test_the_last_step_adds_no_noise():
    denoiser = small_denoiser()
    x = noise(7, 0, (1, 3, 16, 16))
    for sampler in (DDPM(4), DDIM(4, eta=1.0)):
        step = sampler.step(denoiser.diffusion, x, 0, denoiser(x, 0), lambda t: pytest.fail("noise at the last step"))
        torch.testing.assert_close(step.x, step.x_0, rtol=0, atol=1e-5)


def test_predicting_x_0_or_eps_is_the_same_sampler():
    """A network that predicts x_0 where another predicts eps walks the same way."""
    base = small_denoiser(out_channels=3)
    eps_diffusion = GaussianDiffusion(base.diffusion.schedule, "fixed_small", "eps", clip_denoised=False)
    x0_diffusion = GaussianDiffusion(base.diffusion.schedule, "fixed_small", "x_0", clip_denoised=False)
    x = noise(7, 0, (1, 3, 16, 16))
    expected = Denoiser(base.network, eps_diffusion)(x, 2)

    class PredictsClean:
        num_classes = None

        def __call__(self, x, tau, y, **arguments):
            output = base.network(x, tau, y, **arguments)
            return output._replace(sample=x0_diffusion.x0_from_eps(x, 2, output.sample))

    found = Denoiser(PredictsClean(), x0_diffusion)(x, 2)
    torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=1e-5)
    assert torch.equal(found.log_variance, expected.log_variance)


@pytest.mark.parametrize("steps", [5, "ddim5", "1,2,2"])
def test_sampling_respaces_by_itself_and_takes_a_respaced_denoiser_as_it_is(steps):
    full = Denoiser(small_unet(), GaussianDiffusion(Schedule.linear()))
    respaced = Denoiser(full.network, full.diffusion.respace(steps))
    x_T = noise(7, 0, (1, 3, 16, 16))
    ends = [
        list(sample(d, DDIM(steps), x_T, noise=lambda t: x_T))
        for d in (full, respaced, GuidedDenoiser(full, []), GuidedDenoiser(respaced, []))
    ]
    assert all(len(end) == 5 and torch.equal(end[-1].x, ends[0][-1].x) for end in ends)
    assert len(full.diffusion.schedule) == 1000


def test_more_steps_than_the_denoiser_has_are_refused():
    denoiser, x_T = small_denoiser(7), noise(7, 0, (1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"cannot keep 250 of 7 .* already respaced to 7"):
        next(sample(denoiser, DDPM(250), x_T, noise=lambda t: x_T))
    assert len(list(sample(denoiser, DDIM(3), x_T, noise=lambda t: x_T))) == 3


def test_a_sampler_is_given_the_steps_it_looks_back_on_and_may_ask_again():
    denoiser, seen = small_denoiser(5), []

    class Curious(DDIM):
        looks_back = 2

        def step(self, diffusion, x_t, t, prediction, noise, history=(), predict=None):
            seen.append([step.t for step in history])
            assert torch.equal(predict(x_t, t).eps, prediction.eps)
            if history:
                assert torch.equal(history[-1].x, x_t)
            return super().step(diffusion, x_t, t, prediction, noise)

    x_T = noise(7, 0, (1, 3, 16, 16))
    *_, curious = sample(denoiser, Curious(5), x_T, noise=lambda t: x_T)
    *_, plain = sample(denoiser, DDIM(5), x_T, noise=lambda t: x_T)
    assert seen == [[], [4], [4, 3], [3, 2], [2, 1]]
    assert torch.equal(curious.x, plain.x)


def test_a_denoiser_says_what_it_denoises():
    denoiser = small_denoiser(num_classes=5, null_label=4)
    x_0 = noise(7, 0, (1, 3, 16, 16))
    for one in (denoiser, GuidedDenoiser(denoiser, [])):
        assert (one.shape, one.num_classes) == ((3, 16, 16), 5)
        assert one.decode(x_0) is x_0
    assert small_denoiser().num_classes is None


def test_values_that_are_not_finite_stop_the_run_and_name_the_step():
    denoiser = small_denoiser()

    class Breaks:
        diffusion = denoiser.diffusion

        def respace(self, steps):
            return self

        def __call__(self, x_t, t, condition=None, **arguments):
            prediction = denoiser(x_t, t)
            if t == 1:
                prediction.eps[1, 0, 0, 0] = float("nan")
            return prediction

    shape = (3, 3, 16, 16)
    steps = sample(Breaks(), DDPM(4), noise(7, 0, shape), noise=lambda t: noise(8, t, shape))
    with pytest.raises(FloatingPointError, match=r"step 3 of 4 \(t = 1, tau = 333\) .*not finite in image 1 of the batch"):
        list(steps)
