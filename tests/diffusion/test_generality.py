"""Other model families and samplers need no change of the library: multistep solvers, velocities, flows, latents.

The data is Gaussian, so that the best possible network is known, and so is where each sample has to end.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import small_denoiser

from sag.diffusion import DDIM, Condition, Denoiser, GaussianDiffusion, Sampler, Schedule, Step, sample
from sag.guidance import ClassifierFreeGuidance, GuidedDenoiser, Question, WeakGuidance
from sag.models import UNetOutput

COVARIANCE = torch.tensor([[0.9, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEANS = torch.tensor([[0.6, -1.1], [0.0, 0.0]], dtype=torch.float64)  # of class 0, and of all classes together
NULL = 1


class GaussianNetwork:
    """The best possible network for two-pixel "images" that are Gaussian with COVARIANCE around the mean of their class."""

    image_channels, image_size, num_classes = 2, 1, 2

    def __init__(self, diffusion):
        self.diffusion, self.attention_layers = diffusion, {}

    def __call__(self, x, tau, y, *, capture, attend):
        schedule = self.diffusion.schedule
        (t,) = np.flatnonzero(np.isclose(schedule.tau, float(tau[0]), rtol=1e-6))  # tau is all that it is told
        signal, noise = schedule.signal[t], schedule.noise[t]
        off = x.flatten(1) - signal * MEANS[y]
        of_xt = torch.linalg.inv(signal**2 * COVARIANCE + noise**2 * torch.eye(2))
        eps, x_0 = noise * off @ of_xt, MEANS[y] + signal * off @ of_xt @ COVARIANCE
        output = self.diffusion.target(x_0.view(x.shape), eps.view(x.shape), int(t))
        return UNetOutput(output, {})


def gaussian_denoiser(schedule, prediction="eps", kind=Denoiser):
    diffusion = GaussianDiffusion(schedule, None, prediction, clip_denoised=False)
    return kind(GaussianNetwork(diffusion), diffusion, NULL)


def class_0(count):
    return Condition(torch.zeros(count, dtype=torch.int64), null_label=NULL)


def no_noise(t):
    pytest.fail("a deterministic sampler asked for noise")


def ends(denoiser, sampler, x_T):
    *_, last = sample(denoiser, sampler, x_T.view(-1, 2, 1, 1), class_0(len(x_T)), noise=no_noise)
    return last.x.flatten(1)


class DPMSolver2M(Sampler):
    """DPM-Solver++(2M) (arXiv:2211.01095, Alg. 2), in all that it takes."""

    looks_back = 1

    def step(self, diffusion, x_t, t, prediction, noise, history=(), predict=None):
        s = diffusion.schedule
        x_0 = diffusion.predicted_x0(x_t, t, prediction.eps, prediction.x_0)
        if t == 0:
            return Step(t, x_0, x_0)
        with np.errstate(divide="ignore"):  # the first step of a flow has no signal: h is infinite, and the step still exact
            half_logsnr = np.log(s.signal / s.noise)
        h = half_logsnr[t - 1] - half_logsnr[t]
        extrapolated = x_0
        if history:
            ratio = h / (half_logsnr[t] - half_logsnr[t + 1])
            extrapolated = x_0 + float(ratio) / 2 * (x_0 - history[-1].x_0)
        x = float(s.noise[t - 1] / s.noise[t]) * x_t - float(s.signal[t - 1] * np.expm1(-h)) * extrapolated
        return Step(t, x, x_0)


class Heun(Sampler):
    """Heun's method (arXiv:2206.00364, Alg. 1), which asks twice in a step."""

    def step(self, diffusion, x_t, t, prediction, noise, history=(), predict=None):
        s = diffusion.schedule
        euler = DDIM(self.steps).step(diffusion, x_t, t, prediction, noise)
        if t == 0:
            return euler
        eps = (prediction.eps + predict(euler.x, t - 1).eps) / 2
        growth = float(s.noise[t - 1] / s.signal[t - 1] - s.noise[t] / s.signal[t])
        return Step(t, float(s.signal[t - 1]) * (x_t / float(s.signal[t]) + growth * eps), euler.x_0)


def exact_ends(schedule, x_T):
    """Where the probability flow takes x_T: along each principal axis it stretches by the ratio of the deviations."""
    signal, noise = float(schedule.signal[-1]), float(schedule.noise[-1])
    variances, axes = torch.linalg.eigh(COVARIANCE)
    stretch = (variances / (signal**2 * variances + noise**2)).sqrt()
    return MEANS[0] + (x_T - signal * MEANS[0]) @ axes @ torch.diag(stretch) @ axes.T


def even_schedule(steps):
    """Steps that are even in the logarithm of the signal-to-noise ratio, where the order of a sampler shows."""
    half_logsnr = np.linspace(8, -4, steps)
    alpha_bar = 1 / (1 + np.exp(-2 * half_logsnr))
    betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    return Schedule.from_betas(betas, np.arange(steps, dtype=np.float64), np.arange(steps), steps)


@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (DPMSolver2M, 2), (Heun, 2)])
def test_errors_fall_with_the_order_of_the_sampler(sampler, order):
    x_T = torch.tensor([[-2.0, 0.5], [0.3, 1.8], [1.1, -1.4]], dtype=torch.float64)
    errors, counts = [], [40, 80, 160, 320]
    for steps in counts:
        schedule = even_schedule(steps)
        found = ends(gaussian_denoiser(schedule), sampler(steps), x_T)
        errors.append(float((found - exact_ends(schedule, x_T)).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.15) if order == 1 else slope >= 1.8


def without_signal():
    """A variance-preserving schedule that ends in pure noise (arXiv:2305.08891)."""
    s = Schedule.linear(1000)
    return Schedule.from_betas(np.append(s.betas[:-1], 1.0), s.tau, s.timesteps, 1000)


FAMILIES = [
    ("v", Schedule.linear(1000)),
    ("v", without_signal()),
    ("flow", Schedule.flow(1000)),
    ("flow", Schedule.flow(1000, tau_scale=1000)),
    ("x_0", Schedule.flow(1000)),
    ("flow", Schedule.linear(1000)),
]


@pytest.mark.parametrize("scale", [0.0, 1.5])
@pytest.mark.parametrize(("prediction", "schedule"), FAMILIES)
def test_guided_velocities_and_flows_give_the_exact_distribution(prediction, schedule, scale):
    """Both predictions are of Gaussians with one covariance, so guidance by w moves the mean to m + w (m - m_null), no more.

    The sampler is affine here, so three points give the mean and the covariance without sampling error.
    """
    guided = GuidedDenoiser(gaussian_denoiser(schedule, prediction), [ClassifierFreeGuidance(scale)])
    x_T = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    mean, *columns = ends(guided, DDIM(500), x_T)
    matrix = torch.stack([column - mean for column in columns], dim=1)
    np.testing.assert_allclose(mean, (1 + scale) * MEANS[0], atol=0.02)
    np.testing.assert_allclose(matrix @ matrix.T, COVARIANCE, atol=0.02)


def test_every_prediction_takes_the_same_way():
    x_T = torch.tensor([[-2.0, 0.5], [0.3, 1.8]], dtype=torch.float64)
    expected, *others = (
        ends(GuidedDenoiser(gaussian_denoiser(Schedule.linear(1000), p), [ClassifierFreeGuidance(1.0)]), DDIM(25), x_T)
        for p in ("eps", "x_0", "v", "flow")
    )
    for found in others:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_flow_may_be_sampled_with_noise():
    generator = torch.Generator().manual_seed(0)

    def noise(t=None):
        return torch.randn(40_000, 2, 1, 1, generator=generator, dtype=torch.float64)

    denoiser = gaussian_denoiser(Schedule.flow(1000), "flow")
    *_, last = sample(denoiser, DDIM(200, eta=1.0), noise(), class_0(40_000), noise=noise)
    x = last.x.flatten(1)
    np.testing.assert_allclose(x.mean(0), MEANS[0], atol=0.03)
    np.testing.assert_allclose(x.T.cov(), COVARIANCE, atol=0.03)


class LatentDenoiser(Denoiser):
    """Two numbers stand for an image: a level for each half."""

    def decode(self, x_0):
        return x_0.permute(0, 2, 1, 3).repeat_interleave(4, dim=2).expand(-1, 3, 8, 8).tanh()


def test_latents_are_sampled_and_decoded():
    guided = GuidedDenoiser(gaussian_denoiser(Schedule.flow(1000), "flow", LatentDenoiser), [ClassifierFreeGuidance(1.0)])
    assert guided.shape == (2, 1, 1)
    x_T = torch.zeros(5, *guided.shape, dtype=torch.float64)
    *_, last = sample(guided, DPMSolver2M(20), x_T, class_0(5), noise=no_noise)
    images = guided.respace(20).decode(last.x)
    assert images.shape == (5, 3, 8, 8)
    assert images[0, :, :4].min() > 0 > images[0, :, 4:].max()  # as the mean of the class


class Shifted(WeakGuidance):
    """The weaker prediction is made from another x_t."""

    def question(self, state):
        return Question(state.x_t + 0.5, state.condition("cond"))


@pytest.mark.parametrize("prediction", ["x_0", "v", "flow"])
def test_differences_are_summed_up_in_the_space_asked_for(prediction):
    schedule, t, s = Schedule.linear(1000), 400, 2.0
    x_t, condition = torch.tensor([[[[0.4]], [[-0.9]]]], dtype=torch.float64), class_0(1)
    guided, outputs = {}, {}
    for space in ("output", "eps"):
        diffusion = GaussianDiffusion(schedule, None, prediction, clip_denoised=False, delta_space=space)
        denoiser = Denoiser(GaussianNetwork(diffusion), diffusion, NULL)
        guided[space] = GuidedDenoiser(denoiser, [Shifted(s, (0, 1))])(x_t, t, condition)
        strong, weak = denoiser(x_t, t, condition), denoiser(x_t + 0.5, t, condition)
        outputs[space] = [
            diffusion.target(diffusion.predicted_x0(x, t, p.eps, p.x_0), p.eps, t)
            for x, p in ((x_t, strong), (x_t + 0.5, weak))
        ]
    strong_output, weak_output = outputs["output"]
    eps, x_0 = diffusion.resolve(strong_output + s * (strong_output - weak_output), x_t, t)
    torch.testing.assert_close(guided["output"].eps, eps)
    torch.testing.assert_close(guided["output"].x_0, x_0)
    torch.testing.assert_close(guided["eps"].eps, strong.eps + s * (strong.eps - weak.eps))
    assert guided["eps"].x_0 is None
    assert (guided["output"].eps - guided["eps"].eps).abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta_space": "x_0"}, "unknown delta_space 'x_0'; expected output or eps, or null"),
        ({"schedule": Schedule.flow(10), "delta_space": "eps"}, "delta_space=eps needs some signal at every step"),
    ],
)
def test_other_spaces_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(**{"schedule": Schedule.linear(), "variance": None, "prediction": "v", **arguments})


class EveryFourthPixel:
    """An autoencoder that keeps every fourth pixel."""

    factor = 4

    def encode(self, images):
        return images[..., ::4, ::4]

    def decode(self, latents):
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_an_autoencoder_turns_sizes_and_latents_of_a_denoiser():
    pixels = small_denoiser()
    latents = replace(pixels, autoencoder=EveryFourthPixel())
    assert (pixels.sample_size(), latents.sample_size()) == ((16, 16), (16, 16))
    assert (pixels.sample_size([32, 64]), latents.sample_size([32, 64])) == ((32, 64), (8, 16))
    x_0 = torch.rand(2, 3, 8, 16)
    assert torch.equal(pixels.decode(x_0), x_0)
    assert latents.decode(x_0).shape == (2, 3, 32, 64)
    for size in ([30, 64], [32], [0, 32], [4, 32]):
        with pytest.raises(ValueError, match=r"size must be \[height,width\] in pixels, both divisible by 8 here, got"):
            latents.sample_size(size)


def test_networks_of_classes_refuse_texts():
    with pytest.raises(ValueError, match="this model takes no text; leave out prompt and prompts"):
        small_denoiser().condition(texts=["a fox"])
