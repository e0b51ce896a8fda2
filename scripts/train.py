"""Train a diffusion model or a noisy-image classifier: python scripts/train.py data=... out=run; again to continue."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from sag import storage
from sag.checkpoints import load_weights, log_notes
from sag.data import ImageSource, picture
from sag.data.tensors import quantise
from sag.devices import device_name, pick_device
from sag.diffusion import DDIM, Denoiser, sample
from sag.distributed import Process, set_meeting_place
from sag.models import UNet, image_size
from sag.noise import SampleNoise
from sag.records import check_folder
from sag.training import STATE, Objective, Settings, Trainer
from scripts.common import run

MEETING = timedelta(minutes=10)  # how long processes wait for each other
GRID = 64


@dataclass
class TrainConfig:
    """The keys of configs/train.yaml and their types; the values are there."""

    model: Any = MISSING
    classifier: Any = None
    task: Any = MISSING
    data: Any = MISSING
    settings: Any = MISSING
    size: list[int] | None = None
    start: str | None = None
    compile: bool = MISSING
    device: str = MISSING
    save_minutes: float = MISSING
    log_every: int = MISSING
    grid_steps: int = MISSING
    out: str = MISSING


def identity(cfg: DictConfig) -> DictConfig:
    """The settings that decide the weights: all but the length, where it runs and what it reports."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    kept = {key: settings[key] for key in ("task", "data", "size", "settings", "start")}
    if not kept["settings"]["anneal"]:
        del kept["settings"]["steps"]  # a longer run may continue a shorter one
    return OmegaConf.create(kept)


def check_data(data: ImageSource, network: Any, size: Sequence[int] | None) -> None:
    """Raise a ValueError if the network does not take these images. size: (height, width), or None for its own square."""
    expected = (*image_size(network, size), network.in_channels)
    if data.shape[1:] != expected:
        shapes = ["x".join(map(str, shape)) for shape in (data.shape[1:], expected)]
        raise ValueError(
            f"the data has images of {shapes[0]}, the network takes {shapes[1]} (height, width, channels); "
            "size=[height,width] trains it on another size"
        )


def draw(trainer: Trainer, cfg: DictConfig) -> None:
    """Sample a grid with the slowest average of the weights, and write it beside the checkpoint."""
    network: UNet = instantiate(cfg.task.network, _convert_="all").to(trainer.device)
    network.load_state_dict(trainer.averaged(max(trainer.ema)))
    network.eval().requires_grad_(False)
    diffusion = instantiate(cfg.model.diffusion).respace(f"ddim{cfg.grid_steps}")
    shape = (network.in_channels, *image_size(network, cfg.size))
    noise = SampleNoise(0, range(GRID), shape, trainer.device)
    y = None
    if network.num_classes is not None:
        y = torch.arange(GRID, device=trainer.device) % (network.num_classes - (cfg.model.null_label is not None))
    denoiser = Denoiser(network, diffusion, cfg.model.null_label)
    *_, last = sample(denoiser, DDIM(f"ddim{cfg.grid_steps}"), noise.initial(), denoiser.condition(y), noise=noise.step)
    pixels = picture(quantise(last.x))
    with trainer.writer(f"grid{trainer.step:06d}.png") as file:
        Image.fromarray(pixels).save(file, "PNG")


def join(process: Process, device: torch.device) -> None:
    """Meet the other processes.

    Raises:
        ValueError: there is no place to meet, or they did not come within `MEETING`.
    """
    if process.world == 1:
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


def main(cfg: DictConfig) -> None:
    """Train by the config, or continue what `out` holds."""
    if cfg.log_every < 1 or cfg.save_minutes <= 0 or cfg.grid_steps < 0:
        raise ValueError("log_every must be at least 1, save_minutes more than 0, grid_steps 0 or more")
    process, device = Process.current(), pick_device(cfg.device, "float32")
    settings: Settings = instantiate(cfg.settings, _convert_="all")
    out = Path(cfg.out)
    folder = storage.LocalFolder(out)
    check_folder(folder, identity(cfg))
    if folder.exists(STATE) and not folder.exists("config.yaml"):
        raise ValueError(f"{out}/{STATE} is there already, and no run of train.py wrote it; give another out, or move it away")
    data: ImageSource = instantiate(cfg.data)
    torch.manual_seed(settings.seed)
    network = instantiate(cfg.task.network, _convert_="all")
    if cfg.start is not None:
        log_notes(cfg.start, load_weights(network, cfg.start))
    network.to(device)
    objective: Objective = instantiate(cfg.task.objective, _convert_="object")
    check_data(data, network, cfg.size)
    join(process, device)
    try:
        trainer = Trainer(network, objective, data, settings, out, process=process, compiled=cfg.compile)
        if process.main:
            parameters = sum(p.numel() for p in network.parameters())
            steps = f"from step {trainer.step} to {settings.steps}"
            print(f"network   {type(network).__name__}, {parameters / 1e6:.2f} M parameters, {steps}")
            print(f"data      {len(data)} images, {settings.batch_size} per step, {process.world} processes")
            print(f"device    {device} ({device_name(device)}), {settings.precision}, to {out}", flush=True)
            folder.create("config.yaml", OmegaConf.to_yaml(identity(cfg)).encode())
        pictures = cfg.grid_steps > 0 and isinstance(network, UNet)
        on_save = (lambda t: draw(t, cfg)) if pictures else None
        with tqdm(total=settings.steps, initial=trainer.step, unit="step", disable=not process.main) as bar:
            for row in trainer.run(60 * cfg.save_minutes, cfg.log_every, on_save):
                shown = {name: f"{value:.4g}" for name, value in row.items() if name not in ("step", "learning_rate")}
                bar.set_postfix(shown, refresh=False)
                bar.update(row["step"] - bar.n)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "train", TrainConfig)


if __name__ == "__main__":
    command()
