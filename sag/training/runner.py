"""A training run in a folder, by one process or several: the function behind scripts/train.py."""

import contextlib
import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sag.data import ImageSource
from sag.devices import pick_device
from sag.distributed import Process, set_meeting_place
from sag.records import CONFIG, check_folder, to_yaml
from sag.storage import LocalFolder
from sag.training.loop import LOG, STATE, Settings, Trainer
from sag.training.losses import Objective

MEETING = timedelta(minutes=10)  # how long processes wait for each other


@dataclass(frozen=True)
class Trained:
    """A finished training run.

    Attributes:
        folder: The folder of the run.
        step: The number of steps that it made, together with earlier ones in this folder.
        weights: The file of the trained weights.
        averages: The files of averaged weights, by the decay of the average. Samples are made with these.
        new: Whether a step was made now.
    """

    folder: Path
    step: int
    weights: Path
    averages: Mapping[float, Path]
    new: bool

    @property
    def log(self) -> list[dict[str, float]]:
        """The rows of the log: the step, the learning rate, the losses and the speed since the row before."""
        with open(self.folder / LOG, newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def train(
    network: nn.Module,
    objective: Objective,
    data: ImageSource,
    settings: Settings,
    out: str | Path,
    *,
    recorded: Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    compiled: bool = False,
    device: str = "auto",
    save_minutes: float = 5.0,
    log_every: int = 100,
    process: Process | None = None,
    begun: Callable[[Trainer], object] = lambda trainer: None,
    logged: Callable[[Mapping[str, float]], object] = lambda row: None,
    saved: Callable[[Trainer], None] | None = None,
) -> Trained:
    """Train a network, or continue what `out` holds.

    Example:
        >>> import numpy as np
        >>> from sag.data import ArrayImages
        >>> from sag.diffusion import GaussianDiffusion, Schedule
        >>> from sag.models import UNet
        >>> from sag.training import DiffusionLoss, Settings, train
        >>> shape = {"image_size": 16, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1}
        >>> network = UNet(**shape, attention_resolutions=[8], channel_mult=[1, 2])
        >>> objective = DiffusionLoss(GaussianDiffusion(Schedule.linear()))
        >>> data = ArrayImages(np.zeros((8, 16, 16, 1), np.uint8))
        >>> settings = Settings(steps=2, batch_size=4, learning_rate=1e-4)
        >>> trained = train(network, objective, data, settings, "model", device="cpu", log_every=1)
        >>> trained.step, trained.averages[0.9999].name, len(trained.log)
        (2, 'ema_0.9999_000002.pt', 2)

    Args:
        network: The network, with the weights to begin with.
        objective: The loss.
        data: The images.
        settings: How to train.
        out: The folder of the run.
        recorded: Everything that determines the weights, as YAML can hold it; the folder keeps it, and a run continues one
            with equal values only. A longer run may continue a shorter one if it does not have the number of steps. None
            records the settings.
        size: (height, width) of the images where it is not the network's own square.
        compiled: Whether to compile the network.
        device: "cpu", "cuda", "cuda:N", or "auto".
        save_minutes: Minutes between checkpoints. There is also one at the end.
        log_every: Steps between rows of the log.
        process: This process among those that train the network together; None is as the launcher says.
        begun: Called before the first step.
        logged: Called with each row of the log.
        saved: Called in the main process after each checkpoint, such as `Pictures`.

    Returns:
        The finished run, in all processes.

    Raises:
        ValueError: If an argument is out of range, the data does not fit the network or the objective, the folder holds
            another run or files of the user, or the processes do not meet.
        FloatingPointError: If a gradient is not finite. The last good checkpoint is kept.
        OSError: If a file cannot be read or written.
    """
    for name, value, fits in (("log_every", log_every, "at least 1"), ("save_minutes", save_minutes, "more than 0")):
        if not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name} must be {fits}, got {value!r}")
    process, where, folder = process or Process.current(), pick_device(device), LocalFolder(Path(out))
    kept = _recorded(settings) if recorded is None else recorded
    check_place(folder, kept)
    network.to(where)
    check_data(data, objective.image_shape(network, size))
    with _joined(process, where):
        trainer = Trainer(network, objective, data, settings, folder.path, process=process, compiled=compiled)
        first = trainer.step
        begun(trainer)
        if process.main:
            folder.create(CONFIG, to_yaml(kept).encode())
        for row in trainer.run(60 * save_minutes, log_every, saved):
            logged(row)
    averages = {rate: trainer.out / f"ema_{rate}_{trainer.step:06d}.pt" for rate in trainer.ema}
    weights = trainer.out / f"model{trainer.step:06d}.pt"
    return Trained(trainer.out, trainer.step, weights, averages, trainer.step > first)


def _recorded(settings: Settings) -> dict[str, Any]:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
    if not settings.anneal:
        del values["steps"]
    return {"settings": values}


def check_place(folder: LocalFolder, recorded: Mapping[str, Any]) -> None:
    """Check that a training run may work in a folder.

    Args:
        folder: The folder.
        recorded: See `train`.

    Raises:
        ValueError: If it holds results of other settings, or the state of something else.
    """
    check_folder(folder, recorded)
    if folder.exists(STATE) and not folder.exists(CONFIG):
        raise ValueError(
            f"{folder}/{STATE} is there already, and no run of train.py wrote it; give another out, or move it away"
        )


def check_data(data: ImageSource, expected: tuple[int, int, int]) -> None:
    """Check that images have the shape that a network is trained on.

    Args:
        data: The images.
        expected: Their (height, width, channels).

    Raises:
        ValueError: If they do not.
    """
    if data.shape[1:] != expected:
        shapes = ["x".join(map(str, shape)) for shape in (data.shape[1:], expected)]
        raise ValueError(
            f"the data has images of {shapes[0]}, the network takes {shapes[1]} (height, width, channels); "
            "size=[height,width] trains it on another size"
        )


@contextlib.contextmanager
def _joined(process: Process, device: torch.device) -> Iterator[None]:
    """Meet the other processes, and part from them at the end.

    Raises:
        ValueError: If there is no place to meet, or they do not come within `MEETING`.
    """
    if process.world == 1:
        yield
        return
    set_meeting_place(process)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=process.rank, world_size=process.world, timeout=MEETING)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"the {process.world} processes did not meet at MASTER_ADDR:MASTER_PORT = {where} within {MEETING}; all hosts must "
            "reach it, and be started with the same number of processes"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()
