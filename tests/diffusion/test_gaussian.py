"""The closed forms against their definitions."""

import numpy as np
import pytest
import torch
from helpers import noise

from sag.diffusion import GaussianDiffusion, Schedule

D = GaussianDiffusion(Schedule.linear().respace(50))
X_0, EPS = noise(1, 0, (3, 2, 4, 4)).clamp(-1, 1), noise(1, 1, (3, 2, 4, 4))


@pytest.mark.parametrize("t", [0, 20, 49])
def test_noising_is_undone_by_the_noise_and_by_the_clean_image(t):
    x_t = D.q_sample(X_0, t, EPS)
    scale = float(D.schedule.alpha_bar[t]) ** -0.5
    torch.testing.assert_close(D.x0_from_eps(x_t, t, EPS), X_0, rtol=0, atol=1e-6 * max(1, scale))
    torch.testing.assert_close(D.eps_from_x0(x_t, t, X_0), EPS, rtol=0, atol=1e-4)


def test_a_step_for_each_image_equals_single_steps():
    t = torch.tensor([0, 20, 49])
    batch = {
        "q_sample": D.q_sample(X_0, t, EPS),
        "posterior_mean": D.posterior_mean(EPS, t, X_0),
        "learned_log_variance": D.learned_log_variance(EPS, t),
    }
    for i, one in enumerate(t.tolist()):
        row = slice(i, i + 1)
        torch.testing.assert_close(batch["q_sample"][row], D.q_sample(X_0[row], one, EPS[row]))
        torch.testing.assert_close(batch["posterior_mean"][row], D.posterior_mean(EPS[row], one, X_0[row]))
        torch.testing.assert_close(batch["learned_log_variance"][row], D.learned_log_variance(EPS[row], one))


def test_the_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) from the product of the two Gaussians it comes from."""
    t, s = 20, D.schedule
    prior_mean, prior_var = np.sqrt(s.alpha_bar[t - 1]) * 0.3, 1 - s.alpha_bar[t - 1]
    alpha, beta = 1 - s.betas[t], s.betas[t]
    x_t = 0.7
    variance = 1 / (1 / prior_var + alpha / beta)
    mean = variance * (prior_mean / prior_var + np.sqrt(alpha) * x_t / beta)
    full = torch.full((1, 1, 1, 1), x_t), t, torch.full((1, 1, 1, 1), 0.3)
    assert D.posterior_mean(*full).item() == pytest.approx(mean, rel=1e-6)
    assert s.posterior_variance[t] == pytest.approx(variance, rel=1e-10)


def test_the_learned_variance_lies_between_its_bounds():
    t, s = 20, D.schedule
    for v, bound in ((-1.0, s.posterior_variance[t]), (1.0, s.betas[t])):
        assert D.learned_log_variance(torch.full((1, 1), v), t).exp().item() == pytest.approx(bound, rel=1e-5)


def test_fixed_variances_are_the_posteriors_and_beta():
    like, s = torch.zeros(2, 1, 3, 3), D.schedule
    small = GaussianDiffusion(s, "fixed_small").fixed_log_variance(20, like).exp()
    large = GaussianDiffusion(s, "fixed_large").fixed_log_variance(20, like).exp()
    torch.testing.assert_close(small, torch.full_like(like, s.posterior_variance[20]))
    torch.testing.assert_close(large, torch.full_like(like, s.betas[20]))
    first = GaussianDiffusion(s, "fixed_large").fixed_log_variance(0, like).exp()
    torch.testing.assert_close(first, torch.full_like(like, s.posterior_variance[1]))


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v", "flow"])
@pytest.mark.parametrize("schedule", [D.schedule, Schedule.flow(50)], ids=["linear", "flow"])
def test_the_output_of_a_network_is_resolved_into_noise_and_image(schedule, prediction):
    if prediction == "eps" and schedule.signal[-1] == 0:
        with pytest.raises(ValueError, match="prediction=eps does not determine the image where there is no signal"):
            GaussianDiffusion(schedule, None, prediction)
        return
    d = GaussianDiffusion(schedule, None, prediction)
    for t in (0, 20, 49, torch.tensor([0, 20, 49])):
        output = d.target(X_0, EPS, t)
        eps, x_0 = d.resolve(output, d.q_sample(X_0, t, EPS), t)
        torch.testing.assert_close(eps, EPS, rtol=0, atol=2e-4)
        torch.testing.assert_close(x_0, X_0, rtol=0, atol=2e-4)


def test_without_signal_the_noise_does_not_determine_the_image():
    d = GaussianDiffusion(Schedule.flow(50), None, "flow")
    torch.testing.assert_close(d.eps_from_x0(EPS, 49, X_0), EPS)
    assert torch.equal(d.predicted_x0(EPS, 49, EPS, X_0), X_0)
    with pytest.raises(ValueError, match="x_0 does not follow from eps at t = 49, where there is no signal"):
        d.predicted_x0(EPS, 49, EPS)


def test_a_variance_needs_betas():
    for variance in ("learned_range", "fixed_small", "fixed_large"):
        with pytest.raises(ValueError, match=f"variance={variance} needs a variance-preserving schedule"):
            GaussianDiffusion(Schedule.flow(50), variance, "flow")


def test_clamping_is_an_option():
    loose = GaussianDiffusion(D.schedule, clip_denoised=False)
    assert D.predicted_x0(3 * EPS, 5, EPS).abs().max() == 1
    assert torch.equal(loose.predicted_x0(3 * EPS, 5, EPS), D.x0_from_eps(3 * EPS, 5, EPS))


def test_flags_give_the_same_diffusion():
    d = GaussianDiffusion.from_flags(
        "--noise_schedule cosine --diffusion_steps 4000 --timestep_respacing 250 --learn_sigma True --rescale_timesteps True"
    )
    np.testing.assert_array_equal(d.schedule.betas, Schedule.cosine(4000).respace(250).betas)
    assert (d.variance, d.prediction, d.schedule.tau[-1]) == ("learned_range", "eps", 999.75)
    assert GaussianDiffusion.from_flags({"sigma_small": True, "predict_xstart": True}).prediction == "x_0"
    assert GaussianDiffusion.from_flags({}).variance == "fixed_large"


@pytest.mark.parametrize("argument", ["variance", "prediction"])
def test_unknown_words_are_named(argument):
    with pytest.raises(ValueError, match=f"unknown {argument} 'big'; expected one of"):
        GaussianDiffusion(D.schedule, **{argument: "big"})
    with pytest.raises(ValueError, match="unknown noise_schedule 'square'"):
        GaussianDiffusion.from_flags({"noise_schedule": "square"})
