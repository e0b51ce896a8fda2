"""The training loop: any objective, any number of processes, stopped and continued at will.

Step s of a run depends on (seed, s) and the weights only: which images, which noise, which dropout. So a run that is stopped
and continued ends with the same bits, and no state of a random generator is kept.
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
    """How to train; what decides the weights.

    steps: of the optimizer. batch_size: images per step, of all processes together; microbatch: images at once in a process,
    None for all. warmup: steps over which the rate rises; anneal: whether it then falls to zero along a cosine. ema_rates: the
    decay per step of each average of the weights, less in the first steps. clip: the largest norm of a gradient. flip: mirror
    every second image.
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
        check_word("seed", self.seed, bits=32)  # [seed, step, rank] are told apart while each fits 32 bits
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
        """The learning rate of step `step`, the first being 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.learning_rate * rise * (0.5 * (1 + np.cos(np.pi * done)) if self.anneal else 1.0)


class Trainer:
    """A network in training, its averages, its optimizer and its files in `out`, named as guided-diffusion names them.

    network: on its device. data: images of the network's size and channels. A checkpoint in `out` is continued.

    Raises:
        ValueError: data that cannot serve, or a batch that does not divide among the processes.
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
            raise ValueError(f"batch_size={settings.batch_size} does not divide among {self.process.world} processes")
        labels = data.labels()
        if labels is not None and labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {labels.min()}")
        objective.check(None if labels is None else int(labels.max()) + 1)
        self.labels = labels
        self.step = 0
        self._saved = 0  # the step of the last checkpoint
        self._files: set[str] = set()  # those that this run wrote into `out`
        self._data: Future[str] | None = None  # the fingerprint, once it is known
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
        """Train to the last step; yields what is logged, every `log_every` steps. A checkpoint is written every `save_every`
        seconds and at the end; `on_save` is then called in the main process.

        Raises:
            FloatingPointError: a gradient that is not finite; nothing is saved after the last good checkpoint.
        """
        saved, begin, first = time.monotonic(), time.monotonic(), self.step
        sums: dict[str, list[float]] = {}
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as hasher:
            if self.process.main:  # large data takes a while to hash: the first checkpoint waits for it, not the first step
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
        """A state dict with the average of this rate for the weights."""
        names = [name for name, _ in self.network.named_parameters()]
        return {**self.network.state_dict(), **dict(zip(names, self.ema[rate], strict=True))}

    def save(self) -> None:
        """Write model, averages, optimizer and state, then remove this run's older checkpoint.

        The state comes last and makes the others count. It names the files of the run, which alone are replaced or removed.

        Raises:
            ValueError: a file of somebody else has one of the names; nothing is written.
            OSError: a file cannot be written; the last checkpoint still counts.
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
        """Give a file in `out` that belongs to the run; it appears when the block ends well.

        Raises:
            ValueError: there is such a file, and the run did not write it.
        """
        self._claim([name])
        with atomic(self.out / name) as file:
            yield file

    def _claim(self, names: Iterable[str]) -> None:
        """Put names into the state before the files are written, so that a run that is killed finds its own files again."""
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
        """Continue from the checkpoint in `out`, or see that nobody else's training is there.

        Raises:
            ValueError: a file that cannot be read, other data, or files that this run would replace and did not write.
        """
        path = self.out / STATE
        if path.exists():
            self._saved, data, self._files = _read_state(path)
            if self.process.main and data is not None and data != self.data.fingerprint:
                raise ValueError(
                    f"the data is not that of the run in {self.out}, which stopped at step {self._saved}: its images, labels "
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
            int(np.random.SeedSequence([s.seed, self.step, self.process.rank]).generate_state(1, np.uint64)[0] >> 1)
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
            decay = min(rate_of_ema, (1 + self.step) / (10 + self.step))  # else the first weights would stay for long
            torch._foreach_lerp_(averages, [p.detach() for p in self.network.parameters()], 1 - decay)
        return {"gradient_norm": norm} | {name: float(torch.cat(values).mean()) for name, values in parts.items()}

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        # the CPU's flash attention is slow backwards
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
        """Places in the data and images of this process at a step; all data is seen once before any is seen again.

        It runs in a thread of its own, without PyTorch: a second thread that computes with OpenMP makes the first wait (on two
        cores for a third of its time).
        """
        s, n = self.settings, len(self.data)
        share = s.batch_size // self.process.world
        places = np.arange(share) + step * s.batch_size + self.process.rank * share
        rows = np.concatenate(
            [_order(s.seed, int(epoch), n)[places[places // n == epoch] % n] for epoch in np.unique(places // n)]
        )
        return rows, self.data.take(rows)

    def _batch(self, rows: NDArray[np.int64], images: Images) -> tuple[Tensor, Tensor | None]:
        """Images (n, C, H, W) in [-1, 1] and labels (n,) on the device."""
        s = self.settings
        x = dequantise(images, self.device)
        if s.flip:
            mirrored = torch.from_numpy(np.random.default_rng([s.seed, self.step, self.process.rank]).random(len(rows)) < 0.5)
            x = torch.where(mirrored.to(self.device)[:, None, None, None], x.flip(3), x)
        return x, None if self.labels is None else torch.from_numpy(self.labels[rows]).to(self.device)

    def _due(self, due: bool) -> bool:
        """The main process's clock decides for all, so that all stop at the same step."""
        if self.process.world == 1:
            return due
        flag = torch.tensor(due, dtype=torch.uint8)
        if self.device.type == "cuda":
            flag = flag.to(self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def _log(self, row: Mapping[str, float]) -> None:
        """Append to log.csv; rows of steps that come again after a restart are dropped."""
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
    """Return the step of the last checkpoint, the fingerprint of its data, if it is known, and the files of the run."""
    try:
        facts = json.loads(path.read_bytes())
        step, data = facts["step"], facts.get("data")
        valid = type(step) is int and step >= 0 and isinstance(data, str | None)
        if "files" in facts:
            files = {str(name) for name in facts["files"]}
        else:  # written by an earlier version, which kept no names
            names = {file.name for file in path.parent.iterdir()}
            files = {name for name in names if _step_of(name) == step} | names & {LOG}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise _Unreadable(path, "it is not the state of a run")
    return step, data, files


def _step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint's file, or None if it is no such name."""
    found = re.fullmatch(r"(?:model|ema_.+_|opt|timesteps|grid)(\d{6,})\.(?:pt|png)", name)
    return None if found is None else int(found[1])


def _gathered(values: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


@functools.lru_cache(2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
