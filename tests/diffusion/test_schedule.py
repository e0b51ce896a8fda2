"""Schedules and respacing against the reference programs' tables."""

import numpy as np
import pytest
from helpers import golden

from sag.diffusion import Schedule

CASES, ARRAYS = golden("classifier")
TIMESTEPS = CASES["schedules"]


@pytest.mark.parametrize("name", ["linear1000", "cosine1000", "linear4000", "cosine4000"])
def test_betas_are_those_of_the_reference(name):
    steps = int(name[6:])
    betas = getattr(Schedule, name[:6])(steps).betas
    np.testing.assert_allclose(betas[:: max(1, steps // 50)], ARRAYS[f"betas/{name}"], rtol=1e-12)


@pytest.mark.parametrize("case", TIMESTEPS)
def test_kept_steps_are_those_of_the_reference(case):
    total, steps = case.split(":")
    schedule = Schedule.linear(int(total)).respace(steps.strip("[]"))
    assert schedule.timesteps.tolist() == TIMESTEPS[case]


def test_the_tables_of_a_respaced_schedule_are_those_of_the_reference():
    s = Schedule.linear(1000).respace(25)
    tables = {
        "betas": s.betas,
        "alphas_cumprod": s.alpha_bar,
        "posterior_variance": s.posterior_variance,
        "posterior_log_variance_clipped": s.posterior_log_variance,
        "posterior_mean_coef1": s.betas * np.sqrt(s.alpha_bar_prev) / (1 - s.alpha_bar),
        "posterior_mean_coef2": (1 - s.alpha_bar_prev) * np.sqrt(1 - s.betas) / (1 - s.alpha_bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / s.alpha_bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / s.alpha_bar - 1),
    }
    for name, table in tables.items():
        np.testing.assert_allclose(table, ARRAYS[f"respaced_linear1000_25/{name}"], rtol=1e-10, err_msg=name)


def test_respacing_keeps_alpha_bar_and_may_be_repeated():
    full = Schedule.cosine(4000)
    once = full.respace(400)
    twice = once.respace("10,15,20")
    for schedule in (once, twice):
        np.testing.assert_allclose(schedule.alpha_bar, full.alpha_bar[schedule.timesteps], rtol=1e-10)
    assert len(twice) == 45


def test_tau_is_rescaled_to_1000_steps_and_the_time_never_is():
    schedule = Schedule.cosine(4000, rescale_timesteps=True).respace(4)
    assert schedule.timesteps.tolist() == [0, 1333, 2666, 3999]
    np.testing.assert_allclose(schedule.tau, [0, 333.25, 666.5, 999.75])
    np.testing.assert_allclose(schedule.time, schedule.timesteps / 4000)


def test_signal_and_noise_are_alpha_bars_roots_and_flow_is_a_straight_line():
    s = Schedule.cosine(1000).respace(25)
    np.testing.assert_array_equal(s.signal, np.sqrt(s.alpha_bar))
    np.testing.assert_array_equal(s.noise, np.sqrt(1 - s.alpha_bar))
    flow = Schedule.flow(1000, tau_scale=1000).respace(3)
    np.testing.assert_allclose(flow.time, [0.001, 0.501, 1])
    np.testing.assert_allclose(flow.tau, [1, 501, 1000])
    np.testing.assert_allclose([flow.signal, flow.noise], [1 - flow.time, flow.time])
    assert (flow.signal[-1], flow.noise[-1]) == (0, 1)


def test_the_posterior_variance_of_any_path_is_that_of_the_betas():
    s = Schedule.linear(1000).respace(25)
    anonymous = Schedule(s.signal, s.noise, s.tau, s.timesteps, s.training_steps)
    np.testing.assert_allclose(anonymous.posterior_variance, s.posterior_variance, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(anonymous.variance_prev, s.variance_prev, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(anonymous.clean_of_noisy, s.clean_of_noisy, rtol=1e-9)


def test_respacing_in_the_same_way_again_changes_nothing():
    for steps in (7, "ddim25", "10,15,20"):
        once = Schedule.linear(1000).respace(steps)
        assert once.respace(steps) is once


def test_what_a_schedule_cannot_be_is_said():
    flow, table = Schedule.flow(10), np.linspace(0.1, 0.9, 9)
    for ask in (lambda: flow.betas, lambda: flow.alpha_bar):
        with pytest.raises(ValueError, match=r"only a variance-preserving schedule has betas.*DDIM \(sampler=ddim\)"):
            ask()
    with pytest.raises(ValueError, match=r"equally long, got lengths \[9, 10\]"):
        Schedule(flow.signal, table, flow.tau, flow.timesteps, 10)
    with pytest.raises(ValueError, match="every step of a schedule needs some noise"):
        Schedule(flow.noise, flow.signal, flow.tau, flow.timesteps, 10)
    with pytest.raises(ValueError, match=r"cannot keep 250 of 7 .*; the schedule was already respaced to 7"):
        Schedule.linear().respace(7).respace(250)


def test_one_step_is_a_schedule():
    assert np.isfinite(Schedule.linear(1).posterior_log_variance).all()
    assert len(Schedule.linear(1000).respace(1)) == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (1001, "cannot keep 1001 of 1000"),
        ("10,2000", "cannot keep 2000 of 500"),
        ("ddim300", "no integer stride over 1000 steps gives exactly 300 of them"),
        ("fast", "must look like 250, ddim25 or 10,15,20, got 'fast'"),
        (0, "must look like"),
        (-3, "must look like"),
    ],
)
def test_impossible_steps_are_named(steps, message):
    with pytest.raises(ValueError, match=message):
        Schedule.linear(1000).respace(steps)


def test_an_empty_schedule_is_an_error():
    with pytest.raises(ValueError, match="at least 1 step"):
        Schedule.cosine(0)
