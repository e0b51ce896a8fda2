"""Train a diffusion model or a noisy-image classifier: python scripts/train.py data=... out=run; again to continue."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from tqdm import tqdm

from sag.distributed import Process
from sag.storage import LocalFolder
from scripts.common import run

if TYPE_CHECKING:
    from sag.training import Trainer


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


def main(cfg: DictConfig) -> None:
    """Train by the config, or continue what `out` holds, as one of any number of processes."""
    import torch  # these take a second, which --help does without

    from sag.checkpoints import load_weights, log_notes
    from sag.training import DiffusionLoss, OfLatents, Pictures, Reconstruction, Settings, latent_scale, reconstructions, train
    from sag.training.runner import check_place

    settings: Settings = instantiate(cfg.settings, _convert_="all")
    check_place(LocalFolder(Path(cfg.out)), recorded(cfg))  # before the data is read
    data = instantiate(cfg.data)
    torch.manual_seed(settings.seed)
    network = instantiate(cfg.task.network, _convert_="all")
    if cfg.start is not None:
        log_notes(cfg.start, load_weights(network, cfg.start))
    size = None if cfg.size is None else tuple(cfg.size)
    objective, autoencoder = instantiate(cfg.task.objective, _convert_="object"), autoencoder_of(cfg)
    pictures: Callable[[Trainer], None] | None = None
    if cfg.grid_steps != 0 and isinstance(objective, DiffusionLoss):
        pictures = Pictures(instantiate(cfg.model.diffusion), cfg.model.null_label, size, cfg.grid_steps, autoencoder)
    elif cfg.grid_steps != 0 and isinstance(objective, Reconstruction):
        pictures = reconstructions
    with Screen() as screen:
        trained = train(
            network,
            objective if autoencoder is None else OfLatents(objective, autoencoder),
            data,
            settings,
            cfg.out,
            recorded=recorded(cfg),
            size=size,
            compiled=cfg.compile,
            device=cfg.device,
            save_minutes=cfg.save_minutes,
            log_every=cfg.log_every,
            begun=screen.begin,
            logged=screen.update,
            saved=pictures,
        )
    if isinstance(objective, Reconstruction) and Process.current().main:
        weights = trained.averages[max(trained.averages)]
        load_weights(network, str(weights))
        scale = latent_scale(network, data)
        print(f"latents   of {weights} have the variance one with model.autoencoder.network.scale={scale:.6g}")


def autoencoder_of(cfg: DictConfig) -> Any:
    """Return the autoencoder on whose latents the task trains, or None."""
    from sag.build import network
    from sag.devices import pick_device

    node = cfg.task.get("autoencoder")
    if node is None:
        return None
    if node.checkpoint is None:
        raise ValueError(
            f"{cfg.model.name} is trained on the latents of an autoencoder, whose weights are missing; train it first, with "
            f"python scripts/train.py task=autoencoder model={cfg.model.name} ..., and give model.autoencoder.checkpoint=..."
        )
    return network(node, pick_device(cfg.device))


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that determine the weights: all but the length, where it runs and what it reports."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    kept = {key: settings[key] for key in ("task", "data", "size", "settings", "start")}
    if not kept["settings"]["anneal"]:
        del kept["settings"]["steps"]  # a longer run may continue a shorter one
    return kept


class Screen(ExitStack):
    """Shows what is trained, and a bar with the losses."""

    def begin(self, trainer: "Trainer") -> None:
        """Show what is trained."""
        from sag.devices import device_name

        network, settings, process, device = trainer.network, trainer.settings, trainer.process, trainer.device
        if process.main:
            parameters = sum(p.numel() for p in network.parameters())
            steps = f"from step {trainer.step} to {settings.steps}"
            print(f"network   {type(network).__name__}, {parameters / 1e6:.2f} M parameters, {steps}")
            print(f"data      {len(trainer.data)} images, {settings.batch_size} per step, {process.world} processes")
            print(f"device    {device} ({device_name(device)}), {settings.precision}, to {trainer.out}", flush=True)
        bar = tqdm(total=settings.steps, initial=trainer.step, unit="step", disable=not process.main)
        self.bar = self.enter_context(bar)

    def update(self, row: Mapping[str, float]) -> None:
        """Show a row of the log."""
        shown = {name: f"{value:.4g}" for name, value in row.items() if name not in ("step", "learning_rate")}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(row["step"] - self.bar.n)


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "train", TrainConfig)


if __name__ == "__main__":
    command()
