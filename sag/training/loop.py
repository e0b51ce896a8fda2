"""The training loop, for any objective and any number of processes. It can be stopped and continued at any time.

The images, noise and dropout of a step depend only on the seed and the number of the step. A run that is stopped and continued
therefore ends with the same bits, and no state of a random generator is saved.
"""

import contextlib
import csv
import functools
import io
import json
import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from sag.data import Images, ImageSource
from sag.data.tensors import dequantise
from sag.distributed import Process
from sag.noise import check_word
from sag.storage import LocalFolder, atomic, refuse_foreign
from sag.training.losses import Objective

STATE, LOG = "state.json", "log.csv"


@dataclass(frozen=True)
class Settings:
    """The settings that determine the trained weights.

    Args:
        steps: Number of optimizer steps.
        batch_size: Images per step, over all processes.
        learning_rate: The highest learning rate.
        microbatch: Images per forward pass in each process; None for all at once.
        weight_decay: Weight decay of AdamW.
        warmup: Number of steps over which the learning rate rises from zero.
        anneal: Whether the learning rate then falls to zero along a cosine.
        clip: Gradients with a larger norm are scaled down to this norm.
        ema_rates: Decay per step of each average of the weights. It is lower in the first steps.
        flip: Whether each image is mirrored with probability 0.5.
        precision: "float32" or "bfloat16".
        seed: Seed of all random numbers, in 32 bits.

    Raises:
        ValueError: If a value is outside its range.
    """

    steps: int
    batch_size: int
    learning_rate: float
    microbatch: int | None = None
    weight_decay: float = 0.0
    warmup: int = 0
    anneal: bool = False
    clip: float = 1.0
    ema_rates: tuple[float, ...] = (0.9999,)
    flip: bool = False
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_word("seed", self.seed, bits=32)  # [seed, step, rank] give different random numbers only within 32 bits each
        for name in ("steps", "batch_size", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(f"microbatch must be at least 1, got {self.microbatch}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"training runs in float32 or bfloat16, got precision={self.precision!r}")
        if not all(0 <= rate < 1 for rate in self.ema_rates):
            raise ValueError(f"ema_rates must be in [0, 1), got {list(self.ema_rates)}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.learning_rate * rise * (0.5 * (1 + np.cos(np.pi * done)) if self.anneal else 1.0)


class Trainer:
    """A network in training, with the averages of its weights, its optimizer and its files.

    Files are named as in guided-diffusion. If `out` has a checkpoint of this run, training continues from it.

    Args:
        network: The network, on its device.
        objective: The loss.
        data: Images of the network's size and number of channels.
        settings: How to train.
        out: The folder of the run.
        process: This process, if there are several.
        compiled: Whether to compile the network.

    Raises:
        ValueError: If the data does not fit the objective, the batch size is not a multiple of the number of processes, or a
            file in `out` cannot be used.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        data: ImageSource,
        settings: Settings,
        out: Path,
        *,
        process: Process | None = None,
        compiled: bool = False,
    ) -> None:
        self.network, self.objective, self.data, self.settings, self.out = network, objective, data, settings, out
        self.process = process or Process()
        self.device = next(network.parameters()).device
        if settings.batch_size % self.process.world:
            raise ValueError(
                f"batch_size={settings.batch_size} must be a multiple of the number of processes, {self.process.world}"
            )
        labels = data.labels()
        if labels is not None and labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {labels.min()}")
        objective.check(None if labels is None else int(labels.max()) + 1)
        self.labels = labels
        self.step = 0
        self._saved = 0  # the step of the last checkpoint
        self._files: set[str] = set()  # the files that this run wrote into `out`
        self._data: Future[str] | None = None  # the fingerprint of the data
        self.optimizer = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.ema = {rate: [p.detach().clone() for p in network.parameters()] for rate in settings.ema_rates}
        self._load()
        if compiled:
            network.compile()
        self.model = DistributedDataParallel(network) if self.process.world > 1 else network

    def run(
        self, save_every: float, log_every: int, on_save: Callable[["Trainer"], None] | None = None
    ) -> Iterator[dict[str, float]]:
        """Train to the last step.

        Args:
            save_every: Seconds between checkpoints. There is also one at the end.
            log_every: Steps between rows of the log.
            on_save: Called in the main process after each checkpoint.

        Yields:
            Each row of the log.

        Raises:
            FloatingPointError: If a gradient is not finite. The last good checkpoint is kept.
        """
        saved, begin, first = time.monotonic(), time.monotonic(), self.step
        sums: dict[str, list[float]] = {}
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as hasher:
            if self.process.main:  # hashing large data takes a while; only the first checkpoint waits for it
                self._data = hasher.submit(lambda: self.data.fingerprint)
            ahead = reader.submit(self._read_rows, self.step)
            while self.step < self.settings.steps:
                rows, images = ahead.result()
                ahead = reader.submit(self._read_rows, self.step + 1)
                for name, value in self._train_step(*self._batch(rows, images)).items():
                    sums.setdefault(name, []).append(value)
                self.step += 1
                if self.step % log_every == 0 or self.step == self.settings.steps:
                    seconds = time.monotonic() - begin
                    speed = (self.step - first) * self.settings.batch_size / seconds
                    begin, first = time.monotonic(), self.step
                    row = {name: float(np.mean(values)) for name, values in sums.items()}
                    sums.clear()
                    row = {
                        "step": self.step,
                        "learning_rate": self.settings.rate(self.step - 1),
                        "images_per_second": speed,
                    } | row
                    if self.process.main:
                        self._log(row)
                    yield row
                if self._due(time.monotonic() - saved >= save_every or self.step == self.settings.steps):
                    self.save()
                    if on_save is not None and self.process.main:
                        on_save(self)
                    saved = time.monotonic()

    def averaged(self, rate: float) -> dict[str, Tensor]:
        """Return a state dict with the averages of this rate in place of the weights."""
        names = [name for name, _ in self.network.named_parameters()]
        return {**self.network.state_dict(), **dict(zip(names, self.ema[rate], strict=True))}

    def save(self) -> None:
        """Write the model, the averages, the optimizer and the state, then remove this run's previous checkpoint.

        The state is written last; the new checkpoint is valid from then on. The state also lists the files of the run. Only
        these are ever replaced or removed.

        Raises:
            ValueError: If a file that is not of this run has one of the names. Nothing is written then.
            OSError: If a file cannot be written. The previous checkpoint stays valid.
        """
        if not self.process.main:
            return
        contents: dict[str, object] = {f"model{self.step:06d}.pt": self.network.state_dict()}
        contents |= {f"ema_{rate}_{self.step:06d}.pt": self.averaged(rate) for rate in self.ema}
        contents[f"opt{self.step:06d}.pt"] = self.optimizer.state_dict()
        timesteps = self.objective.timesteps
        contents[f"timesteps{self.step:06d}.pt"] = {} if timesteps is None else timesteps.state()
        self._claim(contents)
        for name, content in contents.items():
            with atomic(self.out / name) as file:
                torch.save(content, file)
        older = {name for name in self._files if name.endswith(".pt")} - set(contents)
        self._saved = self.step
        self._write_state()
        for name in older:
            (self.out / name).unlink(missing_ok=True)
        self._files -= older
        self._write_state()

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file of this run in `out`. The file appears when the block ends without an exception.

        Args:
            name: The file's name.

        Raises:
            ValueError: If the file exists, and this run did not write it.
        """
        self._claim([name])
        with atomic(self.out / name) as file:
            yield file

    def _claim(self, names: Iterable[str]) -> None:
        """Put names into the state before the files are written, so that a killed run recognises its own files later."""
        new = set(names) - self._files
        if new:
            refuse_foreign(LocalFolder(self.out), {*new, *([] if self._files else [STATE])}, ())
            self._files |= new
            self._write_state()

    def _write_state(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        data = self._data.result() if self._data is not None and (self._data.done() or self._saved) else None
        facts = {"step": self._saved, "data": data, "files": sorted(self._files)}
        with atomic(self.out / STATE) as file:
            file.write((json.dumps(facts, indent=1) + "\n").encode())

    def _load(self) -> None:
        """Continue from the checkpoint in `out`, or check that `out` has no files of another training.

        Raises:
            ValueError: If a file cannot be read, the data has changed, or this run would replace files that it did not write.
        """
        path = self.out / STATE
        if path.exists():
            self._saved, data, self._files = _read_state(path)
            if self.process.main and data is not None and data != self.data.fingerprint:
                raise ValueError(
                    f"the run in {self.out}, which stopped at step {self._saved}, was trained with other data: images, labels "
                    "or the way they are read have changed; restore the data, or begin another run with out= elsewhere and "
                    f"start={self.out}/model{self._saved:06d}.pt"
                )
        names = set(os.listdir(self.out) if self.out.is_dir() else []) - self._files
        for name in sorted(names):
            step = _step_of(name)
            if (step is not None and step >= self._saved) or (name == LOG and not path.exists()):
                raise ValueError(
                    f"{self.out}/{name} is there already, and this run did not write it: give another out"
                    + (
                        f", with start={self.out}/{name} to begin with its weights"
                        if name.startswith(("model", "ema_"))
                        else ""
                    )
                )
        self.step = self._saved
        if self.step == 0:
            return
        try:
            self.network.load_state_dict(self._read(f"model{self.step:06d}.pt"))
            for rate, averages in self.ema.items():
                weights = self._read(f"ema_{rate}_{self.step:06d}.pt")
                for (name, _), value in zip(self.network.named_parameters(), averages, strict=True):
                    value.copy_(weights[name])
            self.optimizer.load_state_dict(self._read(f"opt{self.step:06d}.pt"))
            if self.objective.timesteps is not None:
                self.objective.timesteps.load(self._read(f"timesteps{self.step:06d}.pt"))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, _Unreadable):
                raise
            raise _Unreadable(self._reading, f"it does not fit the network: {error}") from error

    def _read(self, name: str) -> dict[str, Any]:
        self._reading = self.out / name
        try:
            found: dict[str, Any] = torch.load(self._reading, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise _Unreadable(self._reading, "it is gone") from None
        except (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
            raise _Unreadable(self._reading, "it is damaged") from error
        return found

    def _train_step(self, x_0: Tensor, y: Tensor | None) -> dict[str, float]:
        s, size = self.settings, len(x_0)
        torch.manual_seed(
            int(np.random.SeedSequence([s.seed, self.step, self.process.rank]).generate_state(1, np.uint64)[0]) >> 1
        )
        rate = s.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts: dict[str, list[Tensor]] = {}
        self.network.train()
        for start in range(0, size, s.microbatch or size):
            rows = slice(start, min(start + (s.microbatch or size), size))
            last = rows.stop == size
            wait = (
                self.model.no_sync()
                if isinstance(self.model, DistributedDataParallel) and not last
                else contextlib.nullcontext()
            )
            with wait, self._precision():
                losses, report = self.objective(self.model, x_0[rows], None if y is None else y[rows])
                (losses.sum() / size).backward()
            for name, values in {"loss": losses, **report}.items():
                parts.setdefault(name, []).append(values.detach())
            self._learn_timesteps()
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), s.clip))
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step + 1} gave a gradient that is not finite; the last good checkpoint is kept in {self.out}: "
                "try a smaller learning_rate, or precision=float32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for rate_of_ema, averages in self.ema.items():
            decay = min(rate_of_ema, (1 + self.step) / (10 + self.step))  # else the initial weights would dominate for long
            torch._foreach_lerp_(averages, [p.detach() for p in self.network.parameters()], 1 - decay)
        return {"gradient_norm": norm} | {name: float(torch.cat(values).mean()) for name, values in parts.items()}

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        # On the CPU, the backward pass of flash attention is slow
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else contextlib.nullcontext()
        with attention, torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            yield

    def _learn_timesteps(self) -> None:
        last = self.objective.last_losses()
        if last is None or self.objective.timesteps is None:
            return
        t, losses = last
        if self.process.world > 1:
            t, losses = (_gathered(v, self.process.world) for v in (t, losses))
        self.objective.timesteps.update(t, losses)

    def _read_rows(self, step: int) -> tuple[NDArray[np.int64], Images]:
        """Return the indices and the images of this process at a step. Each epoch uses every image once.

        This runs in a thread of its own, without PyTorch: a second thread that computes with OpenMP makes the first one wait
        (for a third of its time on two cores).
        """
        s, n = self.settings, len(self.data)
        share = s.batch_size // self.process.world
        places = np.arange(share) + step * s.batch_size + self.process.rank * share
        rows = np.concatenate(
            [_order(s.seed, int(epoch), n)[places[places // n == epoch] % n] for epoch in np.unique(places // n)]
        )
        return rows, self.data.take(rows)

    def _batch(self, rows: NDArray[np.int64], images: Images) -> tuple[Tensor, Tensor | None]:
        """Return images (n, C, H, W) in [-1, 1] and labels (n,) on the device."""
        s = self.settings
        x = dequantise(images, self.device)
        if s.flip:
            mirrored = torch.from_numpy(np.random.default_rng([s.seed, self.step, self.process.rank]).random(len(rows)) < 0.5)
            x = torch.where(mirrored.to(self.device)[:, None, None, None], x.flip(3), x)
        return x, None if self.labels is None else torch.from_numpy(self.labels[rows]).to(self.device)

    def _due(self, due: bool) -> bool:
        """Return the main process's value of `due` in all processes, so that all save at the same step."""
        if self.process.world == 1:
            return due
        flag = torch.tensor(due, dtype=torch.uint8)
        if self.device.type == "cuda":
            flag = flag.to(self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def _log(self, row: Mapping[str, float]) -> None:
        """Append a row to log.csv. Rows of steps that are repeated after a restart are dropped."""
        path = self.out / LOG
        with self.writer(LOG) as file:
            rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
            kept = [old for old in rows if int(old["step"]) < row["step"]]
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(row))
            writer.writeheader()
            writer.writerows([*kept, row])
            file.write(text.getvalue().encode())


class _Unreadable(ValueError):
    """A file of a stopped run that cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be used to continue the run: {' '.join(reason.split())[:300]}; restore it from a copy, or begin "
            "another run with out= elsewhere"
        )


def _read_state(path: Path) -> tuple[int, str | None, set[str]]:
    """Return the step of the last checkpoint, the fingerprint of its data (None if unknown), and the files of the run."""
    try:
        facts = json.loads(path.read_bytes())
        step, data = facts["step"], facts.get("data")
        valid = type(step) is int and step >= 0 and isinstance(data, str | None)
        if "files" in facts:
            files = {str(name) for name in facts["files"]}
        else:  # written by an earlier version, which did not list the files
            names = {file.name for file in path.parent.iterdir()}
            files = {name for name in names if _step_of(name) == step} | names & {LOG}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise _Unreadable(path, "it is not the state of a run")
    return step, data, files


def _step_of(name: str) -> int | None:
    """Return the step in a checkpoint file's name, or None for other names."""
    found = re.fullmatch(r"(?:model|ema_.+_|opt|timesteps|grid)(\d{6,})\.(?:pt|png)", name)
    return None if found is None else int(found[1])


def _gathered(values: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


@functools.lru_cache(2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
