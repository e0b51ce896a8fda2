"""One sample with SAG off and on, what SAG saw on the way, and the command that makes the sample again."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import sag
from sag.build.arguments import quote
from sag.build.configs import Config
from sag.data import Images
from sag.data.tensors import quantise
from sag.guidance import ClassifierGuidance, GuidedDenoiser, SelfAttentionGuidance
from sag.sampling import Job, Moment, moment_steps, observe

OF_SAG = ("scale", "blur_sigma", "threshold", "layer")
CHOSEN = (
    *("seed", "indices", "labels", "prompt", "prompts", "images_per_prompt", "sampler.steps"),
    *(f"guidance.sag.{name}" for name in OF_SAG),
)
QUOTES = ("'", '"')
UNUSED = ("out", "num_samples", "batch_size", "duplicates")  # they change nothing about a single sample
Watch = Callable[[float, str], object]


@dataclass(frozen=True)
class Settings:
    """What a visitor chooses.

    Attributes:
        seed: The seed of the noise, in [0, 2**64).
        steps: The number of sampling steps.
        scale: The paper's s.
        blur_sigma: The sigma of the blur, in pixels of what is denoised.
        threshold: The paper's psi.
        layer: The attention layer that SAG reads.
        label: A class, "random" (drawn by the seed) or "none" (the null class); None for a model without classes.
        prompt: A text; None for a model that takes none.
    """

    seed: int
    steps: int
    scale: float
    blur_sigma: float
    threshold: float
    layer: str
    label: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Compared:
    """A sample with SAG off and on.

    Attributes:
        off: (H, W, C) uint8, without SAG but with all other guidance methods.
        on: (H, W, C) uint8, with SAG, from the same noise.
        moments: What SAG saw at some steps, from the first to the last.
        command: The command line that makes `on` again. With `guidance.sag.scale=0` it makes `off`.
    """

    off: Images
    on: Images
    moments: list[Moment]
    command: str


class SideBySide:
    """A model, one sample of which is made with SAG off and on.

    Example:
        >>> from dataclasses import replace
        >>> from evaluations.web.comparison import SideBySide
        >>> pair = SideBySide(["device=cpu"])
        >>> compared = pair.compare(replace(pair.start, steps=4, label="7"))
        >>> compared.off.shape, len(compared.moments)
        ((32, 32, 3), 4)
        >>> compared.command
        "python scripts/sample.py device=cpu 'guidance=[sag]' 'indices=[0]' seed=0 ..."

    Args:
        overrides: Overrides of configs/sample.yaml: the model, and everything that visitors do not choose.
        config_dir: A folder with configs of your own.
        count: At how many steps the mask is shown.

    Attributes:
        job: The sample that the overrides describe.
        start: The settings that the overrides describe.

    Raises:
        ValueError: If something cannot be sampled, or there is no SAG or not one sample to compare.
        OSError: If a file cannot be read or fetched.
    """

    def __init__(self, overrides: Sequence[str], config_dir: str | Path | None = None, count: int = 6) -> None:
        given = {override: override.partition("=")[0].lstrip("+") for override in overrides}
        used = [override for override, key in given.items() if key not in UNUSED]
        self._config_dir, self.count = config_dir, count
        cfg = self._compose([*used, *([] if "indices" in given.values() else ["indices=[0]"])])
        if len(cfg.indices or ()) != 1:
            raise ValueError(f"the page compares one sample; give one index, as indices=[5], got {cfg.indices}")
        if cfg.bits != 8:
            raise ValueError("the page shows images of 8 bits; leave out bits")
        if "sag" not in cfg.guidance:
            raise ValueError("there is nothing to compare without SAG; add sag to guidance=[...]")
        self._model = sag.build.denoiser(cfg)
        self.job = sag.build.job(cfg, self._model)
        (own,) = (g for g in self.job.guidance if isinstance(g, SelfAttentionGuidance))
        if callable(own.scale):
            raise ValueError("visitors choose one scale for all steps; leave out the schedule in guidance.sag.scale")
        GuidedDenoiser(self.job.denoiser, self.job.guidance)  # refuses a layer that the model does not have
        moment_steps(self.job, count)
        self._fixed = [override for override in used if given[override] not in CHOSEN]
        if "guidance" not in given.values() and list(cfg.guidance) == ["sag"]:
            self._fixed.append("guidance=[sag]")
        self._index, self._steps = int(cfg.indices[0]), str(cfg.sampler.steps)
        label = None
        if self.num_classes is not None and self.job.labels is not None:
            label = cfg.labels if cfg.labels in ("random", "none") else str(self.job.labels[0])
        self.start = Settings(
            seed=int(cfg.seed),
            steps=len(self.job.sampler.respace(self.job.denoiser).diffusion.schedule),
            scale=own.scale,
            blur_sigma=float(own.blur_sigma),
            threshold=float(own.threshold),
            layer=own.layer,
            label=label,
            prompt=None if self.job.prompts is None else self.job.prompts[0],
        )

    @property
    def num_classes(self) -> int | None:
        """The number of classes to choose from; None if there are none, or if they come with the images to enlarge."""
        if self.job.labels is None or self.job.low_res is not None:
            return None
        of_model = self.job.denoiser.num_classes
        if of_model is not None:
            return of_model - (self._model.condition().null_label is not None)
        return self._classifiers[0].classifier.num_classes

    @property
    def has_null_class(self) -> bool:
        """Whether a visitor may choose "none" as the class."""
        return self.num_classes is not None and not self._classifiers and self._model.condition().null_label is not None

    @property
    def _classifiers(self) -> list[ClassifierGuidance]:
        return [g for g in self.job.guidance if isinstance(g, ClassifierGuidance)]

    def overrides(self, settings: Settings) -> list[str]:
        """Return the overrides of configs/sample.yaml that make the sample with SAG.

        Args:
            settings: What a visitor chose.

        Raises:
            ValueError: If a setting is not of its kind, or a prompt has a reference to another value.
        """
        for name in ("scale", "blur_sigma", "threshold"):
            value = getattr(settings, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        for name in ("seed", "steps"):
            value = getattr(settings, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        layers = self.job.denoiser.attention_layers
        if settings.layer not in layers:
            raise ValueError(f"unknown attention layer {settings.layer!r}; this model has {', '.join(layers)}")
        steps = self._steps if settings.steps == self.start.steps else str(settings.steps)
        found = [*self._fixed, f"indices=[{self._index}]", f"seed={settings.seed}"]
        if settings.label is not None:
            if settings.label not in ("random", "none") and not settings.label.isdecimal():
                raise ValueError(f"label must be random, none or a whole number, got {settings.label!r}")
            found.append(f"labels={settings.label if settings.label in ('random', 'none') else f'[{settings.label}]'}")
        if settings.prompt is not None:
            if "${" in settings.prompt:
                raise ValueError("a prompt may not have ${ in it, which refers to other values of a config")
            prompt = " ".join(settings.prompt.split())
            found.append(f"prompt={quote(prompt) if prompt[:1] in QUOTES else prompt}")
        found.append(f"sampler.steps={quote(steps) if ',' in steps else steps}")
        return [*found, *(f"guidance.sag.{name}={getattr(settings, name)}" for name in OF_SAG)]

    def compare(self, settings: Settings, watch: Watch = lambda share, doing: None) -> Compared:
        """Make a sample with SAG off and on.

        Args:
            settings: What a visitor chose.
            watch: Called with the share of the work that is done, in [0, 1], and what is being done.

        Raises:
            ValueError: If a setting is out of range.
            FloatingPointError: If the values of a sample do not stay finite.
        """
        overrides = self.overrides(settings)
        job = sag.build.job(self._compose(overrides), self._model)
        others = [g for g in job.guidance if not isinstance(g, SelfAttentionGuidance)]
        GuidedDenoiser(job.denoiser, job.guidance)
        off = replace(job, guidance=others).make([0], lambda share: watch(0.3 * share, "without SAG"))
        on, states = self._with_sag(job, lambda share: watch(0.3 + 0.6 * share, "with SAG"))
        watch(0.9, "masks")
        (moments,) = observe(job, states).values()
        program = ["python", "scripts/sample.py", *([] if self._config_dir is None else [f"--config-dir={self._config_dir}"])]
        return Compared(quantise(off)[0], quantise(on)[0], moments, shlex.join([*program, *overrides]))

    def _with_sag(self, job: Job, watch: Callable[[float], object]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Return the image (1, C, H, W) and x_t at the steps that are shown."""
        wanted, states = moment_steps(job, self.count), {}
        steps = len(job.sampler.respace(job.denoiser).diffusion.schedule)
        for x_t, step in job.trajectory([0]):
            if step.t in wanted:
                states[step.t] = x_t
            watch(1 - step.t / steps)
        with torch.no_grad():
            return job.denoiser.decode(step.x), states

    def _compose(self, overrides: Sequence[str]) -> Config:
        return sag.compose("sample", overrides, self._config_dir)
