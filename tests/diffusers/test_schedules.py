"""Every scheduler of the library is run with data whose denoiser is known exactly, or refused in one sentence."""

import contextlib
import re
import warnings
from dataclasses import dataclass
from typing import ClassVar

import diffusers
import numpy as np
import pytest
import torch
from helpers import ROOT

from sag.diffusers.schedules import SchedulerSampler, SchedulerSteps, read_steps, training_schedule
from sag.diffusion import DDIM, GaussianDiffusion, Prediction, Schedule, sample
from sag.guidance import GuidedDenoiser
from sag.noise import SampleNoise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, within the library

STD = 0.5  # of the data
PRESERVING = GaussianDiffusion(Schedule.linear(), None, "eps", clip_denoised=False)
FLOW = GaussianDiffusion(Schedule.flow(1000, 1000), None, "flow", clip_denoised=False)

RUNS = {
    "DDIMParallelScheduler": PRESERVING,
    "DDIMScheduler": PRESERVING,
    "DDPMParallelScheduler": PRESERVING,
    "DDPMScheduler": PRESERVING,
    "DEISMultistepScheduler": PRESERVING,
    "DPMSolverMultistepScheduler": PRESERVING,
    "DPMSolverSinglestepScheduler": PRESERVING,
    "EDMDPMSolverMultistepScheduler": PRESERVING,
    "EDMEulerScheduler": PRESERVING,
    "EulerAncestralDiscreteScheduler": PRESERVING,
    "EulerDiscreteScheduler": PRESERVING,
    "FlowMapEulerDiscreteScheduler": FLOW,
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "FlowMatchHeunDiscreteScheduler": FLOW,
    "FlowMatchLCMScheduler": FLOW,
    "HeunDiscreteScheduler": PRESERVING,
    "KDPM2AncestralDiscreteScheduler": PRESERVING,
    "KDPM2DiscreteScheduler": PRESERVING,
    "LCMScheduler": PRESERVING,
    "LMSDiscreteScheduler": PRESERVING,
    "LTXEulerAncestralRFScheduler": FLOW,
    "PNDMScheduler": PRESERVING,
    "SASolverScheduler": PRESERVING,
    "TCDScheduler": PRESERVING,
    "UniPCMultistepScheduler": PRESERVING,
}
FEW_STEPS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")  # for distilled models: they jump to the image and back
REFUSED = {
    "AmusedScheduler": "missing 1 required positional argument: 'mask_token_id'",  # tokens
    "BlockRefinementScheduler": "does not say how much signal and noise",  # tokens
    "CMStochasticIterativeScheduler": "its prediction_type is None",  # consistency models
    "CogVideoXDDIMScheduler": "has a noise schedule of its own",
    "CogVideoXDPMScheduler": "need old_pred_original_sample and timestep_back, which only its own pipeline has",
    "CosineDPMSolverMultistepScheduler": "draws its noise for the whole batch at once",
    "DDIMInverseScheduler": "goes from images to noise",
    "DDPMWuerstchenScheduler": "does not say how much signal and noise",
    "DPMSolverMultistepInverseScheduler": "goes from images to noise",
    "DPMSolverSDEScheduler": "draws its noise for the whole batch at once",
    "DiscreteDDIMScheduler": "does not say how much signal and noise",  # tokens
    "EntropyBoundScheduler": "does not say how much signal and noise",  # tokens
    "HeliosDMDScheduler": "does not take steps=10 with these options",  # videos in stages
    "HeliosScheduler": "does not take steps=10 with these options",
    "IPNDMScheduler": "does not say how much signal and noise",
    "KarrasVeScheduler": "need sigma_hat and sigma_prev and sample_hat",
    "MiniMaxH3Scheduler": "does not find an image that the model knows",  # its velocity points the other way
    "PiflowScheduler": "Piflow model output channels 1 are not divisible",
    "RFD4ProteinaScheduler": "need emit_mask",  # proteins
    "RePaintScheduler": "need original_image and mask",
    "SCMScheduler": "Intermediate timesteps for SCM is not supported",
    "ScoreSdeVeScheduler": "has no set_timesteps or no step",
    "UnCLIPScheduler": "has a noise schedule of its own",
    "VQDiffusionScheduler": "missing 1 required positional argument: 'num_vec_classes'",  # tokens
}


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of independent normal pixels with standard deviation STD."""

    diffusion: GaussianDiffusion
    attention_layers: ClassVar = {}
    shape = (1, 16, 16)
    num_classes = None

    def respace(self, steps):
        diffusion = self.diffusion.respace(steps)
        return self if diffusion is self.diffusion else Gaussian(diffusion)

    def __call__(self, x_t, t, condition=None, *, capture=(), attend=None, memory=None):
        signal, noise = float(self.diffusion.schedule.signal[t]), float(self.diffusion.schedule.noise[t])
        x_0 = x_t * signal * STD**2 / (signal**2 * STD**2 + noise**2)
        return Prediction((x_t - signal * x_0) / noise, x_0=x_0 if self.diffusion.carries_x0 else None)


def run(sampler, diffusion, indices=(0,), shape=(1, 64, 64)):
    noise = SampleNoise(0, list(indices), shape, torch.device("cpu"))
    with contextlib.closing(sample(Gaussian(diffusion), sampler, noise.initial(), noise=noise.step)) as steps:
        return list(steps), noise.initial()


def test_the_table_has_every_scheduler():
    assert set(RUNS) | set(REFUSED) == {name for name in dir(diffusers) if name.endswith("Scheduler")}


def test_the_page_says_what_each_scheduler_does():
    rows = re.findall(r"^\| (`\w+Scheduler`.*?) \| (\w+)", (ROOT / "docs/latent.md").read_text(), re.MULTILINE)
    said = {name: word for names, word in rows for name in re.findall(r"\w+", names)}
    assert {name for name, word in said.items() if word in ("run", "runs")} == set(RUNS)
    assert {name for name, word in said.items() if word == "refused"} == set(REFUSED)


@pytest.mark.parametrize("name", RUNS)
def test_a_scheduler_makes_samples_with_the_spread_of_the_data(name):
    steps, x_T = run(SchedulerSampler(20, name), RUNS[name])
    final = steps[-1].x
    assert torch.isfinite(final).all()
    if name in FEW_STEPS:
        assert float(final.std()) < STD
        return
    assert float(final.std()) == pytest.approx(STD, rel=0.25)  # in 20 steps, some of first order
    assert float(final.mean()) == pytest.approx(0, abs=0.03)
    if not {"Ancestral", "DDPM", "SASolver"} & {part for part in ("Ancestral", "DDPM", "SASolver") if part in name}:
        correlation = torch.corrcoef(torch.stack([final.flatten(), x_T.flatten()]))[0, 1]
        assert correlation > 0.999  # a deterministic sampler keeps every pixel's rank


FLOWS_TOO = ["DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver", "UniPCMultistep"]


@pytest.mark.parametrize("name", FLOWS_TOO)
def test_a_solver_of_both_kinds_runs_flows(name):
    assert float(run(SchedulerSampler(20, f"{name}Scheduler"), FLOW)[0][-1].x.std()) == pytest.approx(STD, rel=0.06)


@pytest.mark.parametrize("name", REFUSED)
def test_a_scheduler_that_cannot_be_guided_is_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=name) as raised:
        SchedulerSampler(10, name).respace(Gaussian(PRESERVING))
    assert REFUSED[name] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in RUNS if n not in FEW_STEPS])
def test_more_steps_come_closer(name):
    """Of solvers of differential equations; the spread of the samples is known exactly."""
    errors = [abs(float(run(SchedulerSampler(n, name), RUNS[name])[0][-1].x.std()) - STD) for n in (8, 64)]
    assert errors[1] < max(errors[0], 0.02)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"]
)
def test_the_rows_are_those_of_training(name):
    schedule = SchedulerSampler(10, name).respace(Gaussian(PRESERVING)).diffusion.schedule
    exact = np.interp(schedule.tau, np.arange(1000), np.log(PRESERVING.schedule.signal / PRESERVING.schedule.noise))
    np.testing.assert_allclose(np.log(schedule.signal / schedule.noise), exact, atol=1e-3)
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, atol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar, schedule.signal**2, rtol=1e-9)
    assert (np.diff(schedule.tau) >= 0).all()


def test_karras_sigmas_and_what_the_network_is_told_belong_together():
    """diffusers' pipeline noises with the table's sigma, but predicts x_0 with alphas_cumprod of the rounded timestep."""
    options = {"use_karras_sigmas": True}
    schedule = SchedulerSampler(10, "DPMSolverMultistepScheduler", options).respace(Gaussian(PRESERVING)).diffusion.schedule
    scheduler = schedule.scheduler
    sigma = scheduler.sigmas[:-1].double().numpy()[::-1]
    np.testing.assert_allclose(schedule.noise / schedule.signal, sigma, rtol=1e-12)
    rounded = scheduler.alphas_cumprod[scheduler.timesteps].double().numpy()[::-1]
    assert np.abs(schedule.signal**2 - rounded).max() > 1e-4  # so the two differ
    assert float(run(SchedulerSampler(20, "DPMSolverMultistepScheduler", options), PRESERVING)[0][-1].x.std()) == pytest.approx(
        STD, rel=0.05
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDPMScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DDIMScheduler", {"eta": 1.0}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("LCMScheduler", {}),
    ],
)
def test_a_sample_depends_on_its_own_noise_only(name, options):
    sampler = SchedulerSampler(5, name, options)
    together = run(sampler, PRESERVING, range(4), (1, 8, 8))[0][-1].x
    for i in range(4):
        assert torch.equal(run(sampler, PRESERVING, [i], (1, 8, 8))[0][-1].x, together[i : i + 1])
    assert len({float(x[0, 0, 0]) for x in together}) == 4
    again = run(sampler, PRESERVING, range(4), (1, 8, 8))[0][-1].x
    assert torch.equal(again, together)


def test_randomness_is_random():
    calm, random = (run(SchedulerSampler(5, "DDIMScheduler", {"eta": eta}), PRESERVING)[0][-1].x for eta in (0.0, 1.0))
    assert (calm - random).abs().mean() > 0.05


def test_ddim_is_our_ddim():
    """On the same steps, the library's DDIM and ours are the same formula."""
    steps, _ = run(SchedulerSampler(10, "DDIMScheduler", {"set_alpha_to_one": True}), PRESERVING)
    denoiser = Gaussian(PRESERVING.respace(SchedulerSampler(10).respace(Gaussian(PRESERVING)).diffusion.schedule))
    noise = SampleNoise(0, [0], (1, 64, 64), torch.device("cpu"))
    ours = list(sample(denoiser, DDIM(str(denoiser.diffusion.schedule.spacing)), noise.initial(), noise=noise.step))
    for theirs, own in zip(steps, ours, strict=True):
        torch.testing.assert_close(theirs.x, own.x, rtol=0, atol=1e-5)


def test_the_trajectory_owns_its_scheduler():
    """A step can be taken again from the same history, and two trajectories do not meet."""
    sampler = SchedulerSampler(6, "DPMSolverMultistepScheduler")
    denoiser = sampler.respace(Gaussian(PRESERVING))
    x = {0: torch.ones(1, 1, 8, 8), 1: -torch.ones(1, 1, 8, 8)}

    def noise(t):
        return torch.zeros(1, 1, 8, 8)

    history = {0: [], 1: []}
    for t in reversed(range(6)):
        for i in (0, 1):  # turn by turn
            step = sampler.step(denoiser.diffusion, x[i], t, denoiser(x[i], t), noise, history[i])
            again = sampler.step(denoiser.diffusion, x[i], t, denoiser(x[i], t), noise, history[i])
            assert torch.equal(step.x, again.x)
            x[i], history[i] = step.x, [step]
    torch.testing.assert_close(x[0], -x[1])


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_trajectory_may_start_at_any_step(name):
    """As for image to image. From there on, it comes to the same image as one that started earlier."""
    sampler = SchedulerSampler(40, name)
    denoiser, (steps, _) = sampler.respace(Gaussian(PRESERVING)), run(sampler, PRESERVING)
    x, history = steps[19].x, []
    for t in reversed(range(20)):
        step = sampler.step(denoiser.diffusion, x, t, denoiser(x, t), lambda t: torch.zeros(1, 1, 64, 64), history)
        x, history = step.x, [step]
    torch.testing.assert_close(x, steps[-1].x, rtol=0, atol=0.02 if name.startswith("DPM") else 1e-6)


def test_respacing_twice_is_the_same_as_once():
    sampler = SchedulerSampler(6)
    once = sampler.respace(GuidedDenoiser(Gaussian(PRESERVING), []))
    assert sampler.respace(once) is once
    other = SchedulerSampler(4, "EulerDiscreteScheduler").respace(once)  # from the training steps again
    assert len(other.diffusion.schedule) == 4
    assert isinstance(other.diffusion.schedule, SchedulerSteps)


def test_the_config_of_a_model_decides_its_steps():
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    diffusion = GaussianDiffusion(training_schedule(config), None, "eps", clip_denoised=False)
    schedule = SchedulerSampler(50, "PNDMScheduler", {"skip_prk_steps": True}).respace(Gaussian(diffusion)).diffusion.schedule
    assert schedule.tau[0] == 1
    assert schedule.tau[-1] == 981
    assert schedule.signal[0] ** 2 == pytest.approx(1 - 0.00085, abs=1e-3)
    flow = GaussianDiffusion(training_schedule({"num_train_timesteps": 1000, "shift": 3.0}), None, "flow", clip_denoised=False)
    shifted = SchedulerSampler(4, "FlowMatchEulerDiscreteScheduler").respace(Gaussian(flow)).diffusion.schedule
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(4)
    np.testing.assert_allclose(shifted.noise[::-1], theirs.sigmas[:-1].double().numpy())
    np.testing.assert_allclose(shifted.tau[::-1], theirs.timesteps.double().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_schedule_without_signal_at_the_end(name):
    """Networks of v can be trained so (arXiv:2305.08891)."""
    config = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    training = training_schedule(config)
    assert training.signal[-1] == pytest.approx(0, abs=1e-6)
    diffusion = GaussianDiffusion(training, None, "v", clip_denoised=False)
    final = run(SchedulerSampler(50, name), diffusion)[0][-1].x
    assert float(final.std()) == pytest.approx(STD, rel=0.15)


def test_a_config_that_describes_no_training_is_refused():
    with pytest.raises(ValueError, match="describes neither betas nor the straight path of a flow"):
        training_schedule(dict(diffusers.EDMEulerScheduler().config))
    with pytest.raises(ValueError, match="does not describe betas"):
        training_schedule({"beta_schedule": "odd"})


def test_adm_with_a_learned_variance_and_two_calls_per_step():
    """The rows of second-order schedulers repeat, and have no variance there."""
    learned = GaussianDiffusion(Schedule.linear(), "learned_range", "eps")
    for name in ("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
        diffusion = SchedulerSampler(5, name).respace(Gaussian(learned)).diffusion
        schedule = diffusion.schedule
        assert len(schedule) == 9
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            diffusion.learned_log_variance(torch.zeros(1, 1, 2, 2), 3)
        np.testing.assert_allclose(schedule.alpha_bar, schedule.signal**2, rtol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (SchedulerSampler(10, "Nonsense"), "has no scheduler 'Nonsense'; it has AmusedScheduler"),
        (SchedulerSampler("ddim10"), "steps must be a whole number from 1 on"),
        (SchedulerSampler(10, "DDIMScheduler", {"karras": True}), "DDIMScheduler has no option 'karras'; it has beta_end"),
        (SchedulerSampler(10, "DDIMScheduler", {"timestep_spacing": "odd"}), "does not take steps=10 with these options"),
        (SchedulerSampler(10, "FlowMatchEulerDiscreteScheduler"), "is for flow models, and this is no such model"),
        (SchedulerSampler(10, "DDIMScheduler", {"eta": "much"}), "DDIMScheduler cannot sample step by step"),
        (SchedulerSampler(10, "DDIMScheduler", {"generator": 1}), "has no option 'generator'; it has beta_end"),
        (SchedulerSampler(2000), "does not take steps=2000"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(sampler, message):
    with pytest.raises(ValueError, match=message) as raised:
        sampler.respace(Gaussian(PRESERVING))
    assert "\n" not in str(raised.value)


def test_more_that_does_not_fit():
    for name in ("DDIMScheduler", "EDMEulerScheduler"):
        with pytest.raises(
            ValueError, match=f"{name} is for models of eps, v or x_0, and this is a flow model; use FlowMatchEuler"
        ):
            SchedulerSampler(10, name).respace(Gaussian(FLOW))
    with pytest.raises(ValueError, match="UniPCMultistepScheduler does not find an image that the model knows"):
        SchedulerSampler(10, "UniPCMultistepScheduler", {"use_flow_sigmas": False}).respace(Gaussian(FLOW))
    with pytest.raises(ValueError, match="these were already respaced to 25"):
        SchedulerSampler(10).respace(Gaussian(PRESERVING.respace(25)))
    with pytest.raises(ValueError, match="needs a denoiser that was given to its respace"):
        SchedulerSampler(10).step(PRESERVING, torch.zeros(1, 1, 8, 8), 3, Prediction(torch.zeros(1, 1, 8, 8)), None)


def test_a_scheduler_object_can_be_read_and_is_not_changed():
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(7)
    steps = read_steps(scheduler)
    assert scheduler.step_index is None
    np.testing.assert_allclose(steps.noise / steps.signal, scheduler.sigmas[:-1].double().numpy()[::-1], rtol=1e-12)
    np.testing.assert_allclose(steps.scale, np.sqrt(1 + scheduler.sigmas[:-1].double().numpy()[::-1] ** 2), rtol=1e-12)
    np.testing.assert_allclose(steps.tau, scheduler.timesteps.double().numpy()[::-1])
