"""Schedulers of the library diffusers: their steps as a `Schedule`, and a sampler that runs them.

Schedulers keep x on different scales: variance-preserving, variance-exploding (x_0 + sigma eps), or on a straight path. Here,
x is variance-preserving or on the straight path, as everywhere in this project. It is converted for a scheduler's step only.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor
from typing_extensions import override

from sag.diffusion import DenoiserLike, GaussianDiffusion, Prediction, Sampler, Schedule, Step
from sag.diffusion.samplers import Predict
from sag.diffusion.schedule import Table

Output = Literal["eps", "x_0", "v", "minus_v", "flow"]
OUTPUTS: Mapping[str, Literal["eps", "x_0", "v", "flow"]] = {
    "epsilon": "eps",
    "sample": "x_0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
TYPES = {"eps": "epsilon", "x_0": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}
"""What a scheduler is given, by what the model predicts. Every scheduler takes epsilon, few take the clean image."""
OF_THE_BATCH = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
GIVEN = {"self", "model_output", "timestep", "sample", "generator", "return_dict", "num_inference_steps", "device"}
"""Arguments of schedulers that are no options."""
PROBED = 0.5  # a clean image of one pixel


@dataclass(frozen=True, eq=False)
class TrainingSchedule(Schedule):
    """The training steps of a model, with the config of the scheduler that came with it.

    Args:
        config: The scheduler's config: keys such as timestep_spacing or shift.
    """

    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SchedulerSteps(Schedule):
    """The steps of a scheduler: row T - 1 is its first.

    Args:
        scheduler: The scheduler, before its first step. It is copied, never changed.
        scale: (T,) float64, the scheduler's x divided by x_t.
        final_scale: The same after the last step.
        output: What the scheduler's `step` takes as the network's output.
        training: The schedule from which the scheduler was made, if known.
    """

    scheduler: Any = None
    scale: Table = field(default_factory=lambda: np.ones(0))
    final_scale: float = 1.0
    output: Output = "eps"
    training: Schedule | None = None


@dataclass(frozen=True)
class SchedulerStep(Step):
    """A step with the scheduler behind it, which remembers earlier predictions.

    Attributes:
        scheduler: The scheduler after this step.
    """

    scheduler: Any = field(repr=False)


@dataclass(frozen=True)
class SchedulerSampler(Sampler):
    """Runs a scheduler of the library diffusers. It is made from what the model was trained with, and `options`.

    Random schedulers are given one generator for each sample, seeded from that sample's own noise, so that a sample does not
    depend on its batch.

    Args:
        steps: Number of steps. Some schedulers make two of one.
        scheduler: The scheduler's class, such as "EulerDiscreteScheduler".
        options: Its arguments: of the class, such as use_karras_sigmas; of `set_timesteps`, such as mu; of `step`, such as eta.
    """

    steps: int | str = 50
    scheduler: str = "DDIMScheduler"
    options: Mapping[str, Any] | None = None
    looks_back = 1

    @override
    def respace(self, denoiser: DenoiserLike) -> DenoiserLike:
        known = denoiser.diffusion.schedule
        spacing = f"{self.scheduler} {self.steps} {dict(self.options or {})}"
        if known.spacing == spacing:
            return denoiser
        training = known.training if isinstance(known, SchedulerSteps) and known.training is not None else known
        if training.spacing:
            raise ValueError(
                f"{self.scheduler} needs the model's training steps, and these were already respaced to {training.spacing}"
            )
        scheduler = self._build(training, denoiser)
        return denoiser.respace(read_steps(scheduler, training, spacing, self._of_step(scheduler)))

    def _of_step(self, scheduler: Any) -> dict[str, Any]:
        """Return the options that the scheduler's `step` takes."""
        known = set(inspect.signature(scheduler.step).parameters) - GIVEN
        return {name: value for name, value in (self.options or {}).items() if name in known}

    def _build(self, training: Schedule, denoiser: DenoiserLike) -> Any:
        """Make the scheduler for a model and set its timesteps."""
        prediction = denoiser.diffusion.prediction
        steps = str(self.steps)
        if not steps.isdigit() or int(steps) < 1:
            raise ValueError(f"steps must be a whole number from 1 on for a scheduler of diffusers, got {self.steps!r}")
        kind, options = find_scheduler(self.scheduler), self.options or {}
        known = [set(inspect.signature(f).parameters) - GIVEN for f in (kind.__init__, kind.set_timesteps, kind.step)]
        unknown = [name for name in options if name not in set().union(*known)]
        if unknown:
            raise ValueError(f"{self.scheduler} has no option {unknown[0]!r}; it has {', '.join(sorted(set().union(*known)))}")
        if prediction == "flow" and {"beta_schedule", "sigma_data"} & known[0] and "use_flow_sigmas" not in known[0]:
            raise ValueError(
                f"{self.scheduler} is for models of eps, v or x_0, and this is a flow model; "
                "use FlowMatchEulerDiscreteScheduler"
            )
        if isinstance(training, TrainingSchedule):
            config = dict(training.config)
        else:
            betas = None if training.variances is None else training.variances.tolist()
            config = {"num_train_timesteps": training.training_steps, "trained_betas": betas}
        config |= {"prediction_type": TYPES[prediction], "clip_sample": False, "use_flow_sigmas": prediction == "flow"}
        arguments = {**config, **options}
        try:
            scheduler = kind(**{name: value for name, value in arguments.items() if name in known[0]})
            own = {name: value for name, value in options.items() if name in known[1]}
            if scheduler.config.get("use_dynamic_shifting"):
                own = {
                    "mu": _shift(scheduler.config, denoiser.shape),
                    "sigmas": np.linspace(1, 1 / int(steps), int(steps)),
                    **own,
                }
            scheduler.set_timesteps(int(steps), **own)
        except Exception as error:  # the library's classes raise whatever comes first
            raise ValueError(f"{self.scheduler} does not take steps={steps} with these options: {_line(error)}") from error
        return scheduler

    @override
    def step(
        self,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        prediction: Prediction,
        noise: Callable[[int], Tensor],
        history: Sequence[Step] = (),
        predict: Predict | None = None,
    ) -> SchedulerStep:
        schedule = diffusion.schedule
        if not isinstance(schedule, SchedulerSteps):
            raise ValueError("SchedulerSampler needs a denoiser that was given to its respace")
        first = len(schedule) - 1 - t
        earlier = history[-1] if history else None
        scheduler = copy.deepcopy(earlier.scheduler if isinstance(earlier, SchedulerStep) else schedule.scheduler)
        if earlier is None and hasattr(scheduler, "set_begin_index"):  # a trajectory may start at any step
            scheduler.set_begin_index(first)
        x_0 = diffusion.predicted_x0(x_t, t, prediction.eps, prediction.x_0)
        eps = diffusion.eps_from_x0(x_t, t, x_0) if diffusion.clip_denoised else prediction.eps
        if prediction.score is not None:  # as DDIM
            eps = eps - float(schedule.noise[t]) * prediction.score
            x_0 = diffusion.x0_from_eps(x_t, t, eps)
        output = _output(schedule.output, eps, x_0, float(schedule.signal[t]), float(schedule.noise[t]))
        arguments = self._of_step(scheduler)
        if "generator" in inspect.signature(scheduler.step).parameters:
            arguments["generator"] = [_generator(row) for row in noise(t)]
        given, told = float(schedule.scale[t]) * x_t, scheduler.timesteps[first]
        _scaled(scheduler, told)  # as the library's own loops do before each step
        (x, *_) = scheduler.step(output, told, given, **arguments, return_dict=False)
        scale = float(schedule.scale[t - 1]) if t > 0 else schedule.final_scale
        return SchedulerStep(t, x / scale, x_0, scheduler)


def find_scheduler(name: str) -> Any:
    """Return a scheduler class of the library.

    Args:
        name: Its name, such as "DDIMScheduler".

    Raises:
        ValueError: If there is none of that name, or its `step` cannot be called with a prediction alone.
    """
    if name in OF_THE_BATCH:
        raise ValueError(f"{name} draws its noise for the whole batch at once, so samples would depend on their batch")
    kind: Any = getattr(diffusers, name, None)
    found = inspect.isclass(kind) and issubclass(kind, SchedulerMixin)
    if not found:
        known = ", ".join(n for n in dir(diffusers) if n.endswith("Scheduler"))
        raise ValueError(f"diffusers {diffusers.__version__} has no scheduler {name!r}; it has {known}")
    if not all(hasattr(kind, method) for method in ("set_timesteps", "step")):
        raise ValueError(f"{name} has no set_timesteps or no step, so it cannot sample step by step")
    needed = [p.name for p in inspect.signature(kind.step).parameters.values() if p.default is p.empty and p.name not in GIVEN]
    if needed:
        raise ValueError(f"the steps of {name} need {' and '.join(needed)}, which only its own pipeline has")
    return kind


def read_steps(
    scheduler: Any,
    training: Schedule | None = None,
    spacing: str = "scheduler",
    of_step: Mapping[str, Any] | None = None,
) -> SchedulerSteps:
    """Return how much signal and noise x has at each step of a scheduler, and what the network is told.

    The scheduler is tried on a copy: with a denoiser that knows the image, it must end with that image.

    Args:
        scheduler: A scheduler of the library, after `set_timesteps`. It is not changed.
        training: The schedule that the model was trained with; None if the scheduler's own is taken for it.
        spacing: See `Schedule`.
        of_step: Further arguments of its `step`, such as eta.

    Raises:
        ValueError: If the scheduler does not say how much signal and noise there is, goes from images to noise, is for another
            kind of model, or does not find the image.
    """
    name = type(scheduler).__name__
    try:
        steps, found = _try(scheduler, of_step or {})
    except _Unreadable as error:
        raise ValueError(f"{name} {error}") from None
    except Exception as error:  # the library's classes raise whatever comes first
        raise ValueError(f"{name} cannot sample step by step from noise to an image: {_line(error)}") from error
    if not abs(found - PROBED) < 0.05:
        raise ValueError(f"{name} does not find an image that the model knows, so it is for another kind of model")
    rows = steps[::-1]
    signal, noise, scale, told = (np.array([row[key] for row in rows]) for key in ("signal", "noise", "scale", "told"))
    kind = _kind(scheduler)
    flow, data = kind == "flow", float(scheduler.config.get("sigma_data", 1.0))
    tau = told if training is None else _tau(name, kind, signal, noise, told, training)
    if training is None:
        total = int(scheduler.config.get("num_train_timesteps", 1000))
        timesteps = np.clip(np.rint(tau), 0, total).astype(np.int64)
    else:
        total = training.training_steps
        timesteps = np.rint(np.interp(tau, training.tau, training.timesteps)).astype(np.int64)
    variances = None
    if not flow:
        alpha_bar = np.square(signal)
        with np.errstate(divide="ignore", invalid="ignore"):
            variances = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])  # not positive where steps go back
    pristine = copy.deepcopy(scheduler)
    if hasattr(pristine, "set_begin_index"):
        pristine.set_begin_index(0)
    return SchedulerSteps(
        signal, noise, tau, timesteps, total, variances, spacing,
        scheduler=pristine, scale=scale, final_scale=data if kind == "edm" else 1.0,
        output=_taken(scheduler), training=training,
    )  # fmt: skip


def training_schedule(config: Mapping[str, Any]) -> TrainingSchedule:
    """Return the training steps that a scheduler's config describes.

    Args:
        config: The config of the scheduler that came with a model.

    Raises:
        ValueError: If the library cannot make betas of it.
    """
    steps = int(config.get("num_train_timesteps", 1000))
    betas_given = "beta_schedule" in config or config.get("trained_betas") is not None
    of_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if not of_flow and not betas_given and "shift" not in config:
        raise ValueError(
            "the scheduler's config describes neither betas nor the straight path of a flow; EDM's networks, which are told "
            "log(sigma) / 4, cannot be guided here"
        )
    if of_flow or not betas_given:
        base = Schedule.flow(steps, tau_scale=steps)
    else:
        known = set(inspect.signature(DDPMScheduler.__init__).parameters) - {"variance_type", "prediction_type"}
        try:
            betas = DDPMScheduler(**{name: value for name, value in config.items() if name in known}).betas
        except Exception as error:  # the library's classes raise whatever comes first
            raise ValueError(f"the scheduler's config does not describe betas: {_line(error)}") from error
        base = Schedule.from_betas(betas.double().numpy(), np.arange(steps, dtype=np.float64), np.arange(steps), steps)
    return TrainingSchedule(**{f.name: getattr(base, f.name) for f in fields(base)}, config=dict(config))


class _Unreadable(Exception):
    """A scheduler does not say how much signal and noise there is."""


def _kind(scheduler: Any) -> Literal["edm", "exploding", "preserving", "flow", "cumulated"]:
    """Return on which scale a scheduler keeps x."""
    first = scheduler.timesteps[0]
    probe = copy.deepcopy(scheduler)
    if hasattr(probe, "set_begin_index"):
        probe.set_begin_index(0)
    scaled = abs(_scaled(probe, first) - 1) > 1e-6
    if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) >= len(scheduler.timesteps):
        if scaled:
            return "edm" if "sigma_data" in scheduler.config else "exploding"
        config = scheduler.config
        flow = config.get("use_flow_sigmas", config.get("prediction_type", "flow_prediction") == "flow_prediction")
        return "flow" if flow else "preserving"
    if getattr(scheduler, "alphas_cumprod", None) is not None and not scaled:
        return "cumulated"
    raise _Unreadable(
        "does not say how much signal and noise there is at its steps (sigmas or alphas_cumprod), which SAG needs"
    )


def _taken(scheduler: Any) -> Output:
    """Return what a scheduler's `step` takes."""
    kind = _kind(scheduler)
    if kind == "flow":
        return "flow"
    given = scheduler.config.get("prediction_type")
    if given not in OUTPUTS:
        raise _Unreadable(f"does not say that its step takes {', '.join(OUTPUTS)} (its prediction_type is {given})")
    return "minus_v" if kind == "edm" and given == "epsilon" else "v" if kind == "edm" else OUTPUTS[given]


def _try(scheduler: Any, of_step: Mapping[str, Any]) -> tuple[list[dict[str, float]], float]:
    """Run a copy of a scheduler with a denoiser that knows the image.

    Returns:
        The steps as the scheduler takes them, and the image that it finds.
    """
    probe, kind, taken = copy.deepcopy(scheduler), _kind(scheduler), _taken(scheduler)
    if hasattr(probe, "set_begin_index"):
        probe.set_begin_index(0)
    timesteps = probe.timesteps
    arguments = dict(of_step)
    if "generator" in inspect.signature(probe.step).parameters:
        arguments["generator"] = torch.Generator().manual_seed(0)
    steps: list[dict[str, float]] = []
    x = torch.zeros(1, 1, 1, 1)
    for i, told in enumerate(timesteps):
        signal, noise, scale = _row(probe, kind, i, told)
        if noise == 0:
            raise _Unreadable("has a step without noise, at which there is nothing to guide")
        x = torch.full_like(x, scale * (signal * PROBED + noise)) if i == 0 else x
        eps = (x / scale - signal * PROBED) / noise
        output = _output(taken, eps, torch.full_like(x, PROBED), signal, noise)
        (x, *_) = probe.step(output, told, x, **arguments, return_dict=False)
        steps.append({"signal": signal, "noise": noise, "scale": scale, "told": float(told)})
    if steps[0]["noise"] < steps[-1]["noise"]:
        raise _Unreadable("goes from images to noise")
    return steps, float(x) / (float(scheduler.config.sigma_data) if kind == "edm" else 1.0)


def _scaled(scheduler: Any, told: Any) -> float:
    """Return what a scheduler makes of an x of 1, for the network."""
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1, 1, 1, 1), told))


def _row(scheduler: Any, kind: str, i: int, told: Any) -> tuple[float, float, float]:
    """Return the signal and noise of x at step i, and the scheduler's x divided by it.

    Args:
        scheduler: The scheduler, before that step.
        kind: See `_kind`.
        i: The step, in the scheduler's order.
        told: What the network is told there.
    """
    if kind == "cumulated":
        signal2 = float(scheduler.alphas_cumprod[int(told)])
        return signal2**0.5, (1 - signal2) ** 0.5, 1.0
    if kind in ("preserving", "flow"):
        sigma = float(scheduler.sigmas[i])
        return (1 - sigma, sigma, 1.0) if kind == "flow" else (1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5, 1.0)
    data = float(scheduler.config.sigma_data) if kind == "edm" else 1.0
    about = max(1 / _scaled(scheduler, told) ** 2 - data**2, 0) ** 0.5  # rounded; the scheduler's tables have it exactly
    tables = [getattr(scheduler, name, None) for name in ("sigmas", "sigmas_interpol")]
    known = torch.cat([table.double().flatten() for table in tables if table is not None])
    sigma = float(known[(known - about).abs().nan_to_num(torch.inf).argmin()])
    scale = (sigma**2 + data**2) ** 0.5
    return data / scale, sigma / scale, scale


def _tau(name: str, kind: str, signal: Table, noise: Table, told: Table, training: Schedule) -> Table:
    """Return what a model is told at the steps, and check that it was trained with as much noise there."""
    flow = training.variances is None
    if flow != (kind == "flow"):
        of, this = ("flow models", "no such model") if kind == "flow" else ("models of eps, v or x_0", "a flow model")
        raise ValueError(f"{name} is for {of}, and this is {this}")
    own = np.arctan2(training.noise, training.signal)  # from 0 (image) to pi / 2 (noise)
    if flow:
        return noise * float(training.tau[-1] / training.noise[-1])
    tau: Table
    if kind == "edm":  # its networks are told log(sigma) / 4
        tau = np.interp(np.arctan2(noise, signal), own, training.tau)
        return tau
    tau = np.interp(told, training.timesteps, training.tau)
    if np.median(np.abs(np.interp(tau, training.tau, own) - np.arctan2(noise, signal))) > 0.05:
        raise ValueError(f"{name} has a noise schedule of its own, and this model was trained with another")
    return tau


def _shift(config: Mapping[str, Any], shape: tuple[int, int, int]) -> float:
    """Return how much more time a flow model spends in noise, the larger its images are, as FLUX.1's pipeline does.

    Args:
        config: The scheduler's config.
        shape: (C, h, w) of the model's own latents, of which 2x2 are a token.
    """
    tokens = (config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096))
    shifts = (config.get("base_shift", 0.5), config.get("max_shift", 1.15))
    slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0])
    return float(shifts[0] + slope * (shape[1] * shape[2] / 4 - tokens[0]))


def _output(kind: Output, eps: Tensor, x_0: Tensor, signal: float, noise: float) -> Tensor:
    """Return a prediction as a scheduler takes it."""
    if kind in ("v", "minus_v"):
        v = signal * eps - noise * x_0
        return v if kind == "v" else -v
    return {"eps": eps, "x_0": x_0, "flow": eps - x_0}[kind]


def _generator(row: Tensor) -> torch.Generator:
    """Return a generator that depends on the noise of one sample only."""
    first = row.flatten()[:2].cpu().numpy().tobytes()
    return torch.Generator().manual_seed(int.from_bytes(first, "little"))


def _line(error: Exception) -> str:
    """Return the first line of an error of the library."""
    return next(iter(f"{type(error).__name__}: {error}".splitlines()))
