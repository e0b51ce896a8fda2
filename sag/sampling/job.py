"""What samples are made from, and how some of them are made."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sag.data import BITS, ImageSource
from sag.data.tensors import dequantise
from sag.diffusion import DDPM, Condition, DenoiserLike, Sampler, Step, sample
from sag.guidance import Guidance, GuidedDenoiser
from sag.noise import SampleNoise
from sag.records import shared_key
from sag.sampling.shards import Duplicates, shard_name


@dataclass(frozen=True)
class Job:
    """The samples of a run and everything they are made from. `sag.sampling.run` makes all of them, `make` some.

    Example:
        >>> import sag
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=2", "sampler.steps=2", "device=cpu"]))
        >>> job.make([0, 1]).shape
        torch.Size([2, 1, 32, 32])

    Args:
        denoiser: The model, without guidance.
        settings: Everything that determines the samples, as YAML can hold it. Runs continue each other in a folder if their
            settings are equal (`num_samples` and `batch_size` may differ).
        indices: Which samples are made. Sample i depends on the seed and i alone.
        guidance: The guidance methods.
        sampler: How to go from one step to the next.
        seed: In [0, 2**64).
        labels: The class of each of the `indices`, or None for a model without classes.
        low_res: For an upsampling model, the image to enlarge for each of the `indices`.
        size: (height, width) of what is denoised (see `Model.sample_size`); None is the model's own.
        bits: 8 or 16, of the stored images.
        batch_size: How many samples are made at once and stored in one shard.
        duplicates: See `sag.sampling.shards.check_shards`.
        device: Where the samples are made.
        prompts: For a model of texts, the text of each of the `indices`.

    Raises:
        ValueError: If an argument is out of range, or there is not one label, image or text per index.
    """

    denoiser: DenoiserLike
    settings: Mapping[str, Any]
    indices: Sequence[int]
    guidance: Sequence[Guidance] = ()
    sampler: Sampler = field(default_factory=DDPM)
    seed: int = 0
    labels: Sequence[int] | None = None
    low_res: ImageSource | None = None
    size: tuple[int, int] | None = None
    bits: Literal[8, 16] = 8
    batch_size: int = 32
    duplicates: Duplicates | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prompts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits must be 8 or 16, got {self.bits!r}")
        if self.duplicates not in (None, "refuse", "warn"):
            raise ValueError(f"duplicates must be refuse, warn or null, got {self.duplicates!r}")
        check_indices(self.indices)
        check_batch_size(self.batch_size)
        for name, rows in (("labels", self.labels), ("low_res", self.low_res), ("prompts", self.prompts)):
            if rows is not None and len(rows) != len(self.indices):
                raise ValueError(f"{name} must have one row for each of the {len(self.indices)} samples, got {len(rows)}")

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """The settings as the folder of a run records them, with what `progress` needs to know."""
        indices = list(self.indices)
        own: dict[str, Any] = {"num_samples": len(indices), "batch_size": self.batch_size, "seed": self.seed, "bits": self.bits}
        own["indices"] = None if indices == list(range(len(indices))) else indices
        return {**self.settings, **{key: value for key, value in own.items() if key not in self.settings}}

    @cached_property
    def key(self) -> str:
        """A hash of the settings that runs on one folder share."""
        return shared_key(self.recorded)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is denoised."""
        channels, height, width = self.denoiser.shape
        return channels, *(self.size or (height, width))

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a decoded image."""
        channels, height, width = self.denoiser.decode(torch.zeros(1, *self.shape, device=self.device)).shape[1:]
        return channels, height, width

    def batch(self, count: int) -> str:
        """Return the file name of `count` packed samples."""
        channels, height, width = self.image_shape
        stored = 3 if channels == 1 and self.bits == 8 else channels  # as sag.data.tensors.quantise
        return f"samples_{count}x{height}x{width}x{stored}.npz"

    @property
    def target(self) -> str:
        """The file name of the packed samples."""
        return self.batch(len(self.indices))

    @cached_property
    def shards(self) -> dict[str, range]:
        """The rows of `indices` in each shard, by its name; the number of samples and the batch size determine them."""
        count, size = len(self.indices), self.batch_size
        rows = (range(start, min(start + size, count)) for start in range(0, count, size))
        return {shard_name(own): own for own in rows}

    def condition(self, rows: Sequence[int]) -> Condition:
        """Return what the model is told of some samples.

        Args:
            rows: Which of the `indices`.
        """
        low_res = None if self.low_res is None else dequantise(self.low_res.take(np.asarray(rows)), self.device)
        labels = None if self.labels is None else torch.tensor([self.labels[row] for row in rows], device=self.device)
        texts = {} if self.prompts is None else {"texts": [self.prompts[row] for row in rows]}
        return self.denoiser.condition(labels, low_res, **texts)

    def make(self, rows: Sequence[int], watch: Callable[[float], object] = lambda share: None) -> Tensor:
        """Make some samples.

        Args:
            rows: Which of the `indices`.
            watch: Called after every step with the share of the steps that is done, in (0, 1].

        Returns:
            Images (N, C, H, W) float32 in [-1, 1], not clamped.

        Raises:
            FloatingPointError: If the values do not stay finite.
        """
        steps = len(self.sampler.respace(self.denoiser).diffusion.schedule)
        for _, step in self.trajectory(rows):
            watch(1 - step.t / steps)
        with torch.no_grad():
            return self.denoiser.decode(step.x)

    def trajectory(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, Step]]:
        """Yield the steps from noise to samples, each with the x_t (N, C, H, W) from which it starts.

        Args:
            rows: Which of the `indices`.

        Raises:
            FloatingPointError: If the values do not stay finite.
        """
        noise = SampleNoise(self.seed, [self.indices[row] for row in rows], self.shape, self.device)
        with torch.no_grad():
            condition = self.condition(rows)
        guided = self.sampler.respace(GuidedDenoiser(self.denoiser, self.guidance, noise.mask))
        x_t = noise.initial()
        for step in sample(guided, self.sampler, x_t, condition, noise=noise.step):
            yield x_t, step
            x_t = step.x


def check_indices(indices: object) -> None:
    """Raise a ValueError unless these are one or more different whole numbers from 0 on."""
    given: list[Any] = list(indices) if isinstance(indices, Iterable) else [None]
    whole = all(isinstance(index, int | np.integer) and not isinstance(index, bool) for index in given)
    if not given or not whole or min(given) < 0 or len(set(given)) < len(given):
        shown = given if isinstance(indices, Iterable) else indices
        raise ValueError(f"indices must be one or more different whole numbers >= 0, got {shown!r}")


def check_batch_size(batch_size: object) -> None:
    """Raise a ValueError unless this is a whole number from 1 on."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
