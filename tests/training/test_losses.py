"""Losses: what an ideal network gets, where gradients go, and closed forms of the variational bound."""

import math

import pytest
import torch

from sag.diffusion import GaussianDiffusion, Schedule
from sag.training import Classification, DiffusionLoss, LossSecondMoment, NoisyClassification
from sag.training.losses import discretised_log_likelihood, variational_bound

DIFFUSION = GaussianDiffusion(Schedule.linear())


def images(n=16, channels=1):
    torch.manual_seed(1)
    return torch.randint(0, 256, (n, channels, 4, 4)).float() / 127.5 - 1


class Fixed:
    """A network with one answer; remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, *arguments):
        self.asked.append(arguments)
        return self.answer(*arguments)


def oracle(x_0, diffusion=DIFFUSION, v=-1.0):
    """Knows x_0, so that it gives the exact eps; v = -1 is the posterior's variance."""

    def answer(x_t, tau, y):
        t = tau.long()
        eps = diffusion.eps_from_x0(x_t, t, x_0)
        return torch.cat([eps, torch.full_like(eps, v)], 1), {}

    return Fixed(answer)


def test_an_ideal_network_has_no_loss():
    x_0 = images(200)
    torch.manual_seed(0)
    losses, parts = DiffusionLoss(DIFFUSION)(oracle(x_0), x_0, None)
    assert losses.shape == (200,)
    assert float(parts["mse"].max()) < 1e-6
    assert float(parts["vlb"].max()) < 1e-3


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v", "flow"])
def test_errors_of_the_clean_image_are_weighed_by_the_signal_to_noise_ratio_within_a_range(prediction):
    d, x_0, shift = GaussianDiffusion(Schedule.linear(), "fixed_small", prediction), images(200).double(), 0.1

    def answer(x_t, tau, y):
        guess = x_0 + shift
        return d.target(guess, d.eps_from_x0(x_t, tau.long(), guess), tau.long()), {}

    for low, high in ((1, 5), (2, 2)):
        network = Fixed(answer)
        losses, parts = DiffusionLoss(d, snr_range=(low, high))(network, x_0, None)
        alpha_bar = d.schedule.alpha_bar[network.asked[0][1].long()]
        snr = torch.from_numpy(alpha_bar / (1 - alpha_bar))
        assert torch.allclose(losses.double(), shift**2 * snr.clamp(low, high), rtol=1e-3)
        noise, signal = torch.from_numpy(1 - alpha_bar).sqrt(), torch.from_numpy(alpha_bar).sqrt()
        factors = {"eps": snr, "x_0": torch.ones(200), "v": noise**-2, "flow": ((noise + signal) / noise) ** 2}
        expected = shift**2 * factors[prediction]
        assert torch.allclose(parts["mse"].double(), expected.double(), rtol=1e-3)


def test_the_bound_is_the_kl_divergence_of_two_gaussians():
    x_0, d = images(3), DIFFUSION
    t = torch.tensor([1, 400, 999])
    torch.manual_seed(0)
    x_t, predicted = d.q_sample(x_0, t, torch.randn_like(x_0)), torch.randn_like(x_0)
    log_variance = d.learned_log_variance(torch.zeros_like(x_0), t)
    found = variational_bound(d, x_0, x_t, t, predicted, log_variance)
    true_std = torch.from_numpy(d.schedule.posterior_log_variance)[t].mul(0.5).exp().float().view(3, 1, 1, 1)
    p = torch.distributions.Normal(d.posterior_mean(x_t, t, x_0), true_std)
    q = torch.distributions.Normal(d.posterior_mean(x_t, t, predicted), (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(p, q).flatten(1).mean(1) / math.log(2)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


def test_grey_levels_have_all_the_probability():
    levels = (torch.arange(256).float() / 127.5 - 1).view(1, 1, 1, 256)
    for mean, log_scale in ((0.1, -3.0), (-1.2, -1.0), (0.99, -6.0)):
        p = discretised_log_likelihood(levels, torch.tensor(mean), torch.tensor(log_scale)).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-3)
        assert abs(float(p.flatten().argmax()) / 127.5 - 1 - max(mean, -1)) < 1 / 127


def test_the_bound_at_the_first_step_is_the_likelihood():
    x_0, d = images(2), DIFFUSION
    t = torch.zeros(2, dtype=torch.int64)
    x_t = d.q_sample(x_0, t, torch.randn_like(x_0))
    log_variance = d.learned_log_variance(torch.ones_like(x_0), t)
    found = variational_bound(d, x_0, x_t, t, x_0, log_variance)
    expected = -discretised_log_likelihood(x_0, d.posterior_mean(x_t, t, x_0), 0.5 * log_variance) / math.log(2)
    assert found.tolist() == pytest.approx(expected.flatten(1).mean(1).tolist(), rel=1e-5)


def test_the_bound_trains_the_variance_only():
    x_0 = images()
    eps = torch.zeros(16, 1, 4, 4, requires_grad=True)
    v = torch.zeros(16, 1, 4, 4, requires_grad=True)
    torch.manual_seed(0)
    losses, parts = DiffusionLoss(DIFFUSION)(lambda x, tau, y: (torch.cat([eps, v], 1), {}), x_0, None)
    assert torch.allclose(losses, parts["mse"] + parts["vlb"])  # 0.001 of 1000 steps
    parts["vlb"].sum().backward(retain_graph=True)
    assert eps.grad is None or float(eps.grad.abs().max()) == 0
    assert float(v.grad.abs().max()) > 0
    losses.sum().backward()
    assert float(eps.grad.abs().max()) > 0


def test_fixed_variance_and_x0_prediction():
    x_0 = images()
    d = GaussianDiffusion(Schedule.linear(), variance="fixed_small", prediction="x_0")
    losses, parts = DiffusionLoss(d)(lambda x, tau, y: (x_0, {}), x_0, None)
    assert set(parts) == {"mse"}
    assert float(losses.max()) == 0


def test_labels_are_dropped_as_often_as_asked():
    x_0 = images(4000)
    y = torch.arange(4000) % 10
    seen = []
    loss = DiffusionLoss(DIFFUSION, num_classes=11, null_label=10, label_dropout=0.2)
    torch.manual_seed(0)
    loss(lambda x, tau, labels: seen.append(labels) or (torch.zeros(len(x), 2, 4, 4), {}), x_0, y)
    dropped = seen[0] == 10
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert torch.equal(seen[0][~dropped], y[~dropped])


def test_weights_of_the_sampler_are_applied():
    x_0 = images(500)
    sampler = LossSecondMoment(1000, history=1)
    sampler.update(torch.arange(1000), torch.linspace(5, 1, 1000))
    loss = DiffusionLoss(DIFFUSION, sampler)
    losses, parts = loss(lambda x, tau, y: (torch.zeros(500, 2, 4, 4), {}), x_0, None)
    t, plain = loss.last_losses()
    weight = 1 / (1000 * sampler.probabilities()[t])
    assert torch.allclose(losses.double(), plain * weight, rtol=1e-5)
    assert torch.allclose(plain, parts["mse"] + parts["vlb"])


def test_noisy_classification_sees_noise_and_its_level():
    x_0, y = images(64), torch.arange(64) % 4
    network = Fixed(lambda x, tau: 100.0 * torch.nn.functional.one_hot(y, 4))
    losses, parts = NoisyClassification(DIFFUSION, 4)(network, x_0, y)
    assert float(losses.max()) < 1e-6
    assert float(parts["accuracy"].min()) == 1
    x_t, tau = network.asked[0]
    alpha_bar = torch.from_numpy(DIFFUSION.schedule.alpha_bar)[tau.long()].view(-1, 1, 1, 1)
    noise = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_classification_sees_grey_values():
    x_0, y = images(8), torch.zeros(8, dtype=torch.int64)
    network = Fixed(lambda x: torch.zeros(8, 3))
    losses, _ = Classification(3)(network, x_0, y)
    assert losses.tolist() == pytest.approx([math.log(3)] * 8)
    assert torch.allclose(network.asked[0][0], (x_0 + 1) * 127.5)


@pytest.mark.parametrize(
    ("objective", "labels", "message"),
    [
        (DiffusionLoss(DIFFUSION, num_classes=11, null_label=10), None, "a class-conditional model needs data with labels"),
        (DiffusionLoss(DIFFUSION, num_classes=11, null_label=10), 11, "labels up to 10, but the model has 10 classes"),
        (NoisyClassification(DIFFUSION, 4), None, "a classifier needs data with labels"),
        (Classification(4), 5, "labels up to 4, but the classifier has 4 classes"),
    ],
)
def test_data_that_cannot_serve(objective, labels, message):
    with pytest.raises(ValueError, match=message):
        objective.check(labels)


def test_label_dropout_needs_a_null_class():
    with pytest.raises(ValueError, match="label_dropout needs a network with a null class"):
        DiffusionLoss(DIFFUSION, num_classes=10, label_dropout=0.1)
