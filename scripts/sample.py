"""Sample images with any guidance: python scripts/sample.py model=... guidance=[sag,classifier] num_samples=..."""

import socket
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import sag
from sag.build import SampleConfig
from sag.distributed import Process, Stop
from sag.records import LAYOUT, check_folder
from sag.storage import open_folder
from scripts.common import run

if TYPE_CHECKING:
    from sag.sampling import Job

BAR = "{percentage:3.0f}% |{bar}| {n:.0f}/{total_fmt} images, {rate_fmt}, {remaining} left"


def main(cfg: DictConfig) -> None:
    """Sample by the config, as one of any number of processes."""
    from sag.devices import device_name  # this and sag.build.job import torch, which --help does without

    process, out = Process.current(), open_folder(sag.build.out_folder(cfg))
    check_folder(out, sag.build.identity(cfg), LAYOUT)  # before the weights are loaded
    job = sag.build.job(cfg)
    if process.main:
        describe(cfg, job, str(out))
    device = f"{job.device} ({device_name(job.device)})"
    print(f"process   rank {process.rank} of {process.world} on {socket.gethostname()}, {device}", flush=True)
    with tqdm(total=len(job.indices), unit="image", bar_format=BAR, disable=not process.main) as bar:
        sampled = sag.sampling.run(job, out, process, Stop(), lambda done: bar.update(done - bar.n))
    if not sampled.new:
        print(f"done      {sampled.path} is there already, with these settings")
    elif process.main:
        print(f"wrote     {sampled.path}, grid.png, config.yaml and record.json", flush=True)


def describe(cfg: DictConfig, job: "Job", out: str) -> None:
    """Print what will run, a line for each thing that a user wants to check."""
    from sag.guidance import ClassifierGuidance, GuidedDenoiser

    guided = GuidedDenoiser(job.sampler.respace(job.denoiser), job.guidance)
    steps = len(guided.diffusion.schedule)
    passes = sorted({guided.passes(t, job.shape) for t in range(steps)})
    gradients = sum(isinstance(g, ClassifierGuidance) and g.scale != 0 for g in job.guidance)
    weights = job.settings["model"]["checkpoint"]
    print(f"model     {cfg.model.name}: {_parameters(job)}{_size(job)}, weights {weights}")
    print(f"precision {cfg.precision}{', compiled' if cfg.compile else ''}")
    print(f"sampler   {type(job.sampler).__name__}, {steps} steps")
    for name, arguments in cfg.guidance.items():
        options = {k: v if not OmegaConf.is_dict(v) else v.get("name", v) for k, v in arguments.items() if k != "_target_"}
        print(f"guidance  {name}: {', '.join(f'{key} {value}' for key, value in options.items())}")
    per_step = " to ".join(map(str, passes if len(passes) < 3 else passes[:: len(passes) - 1]))
    print(f"passes    {per_step} per step{f', and {gradients} classifier gradient' if gradients else ''}")
    if job.prompts is not None:
        texts = list(dict.fromkeys(job.prompts))
        print(f"prompts   {len(texts)}: {texts[0]!r}{', ...' if len(texts) > 1 else ''}")
    print(f"samples   {len(job.indices)}, seed {cfg.seed}, in batches of {cfg.batch_size}, to {out}", flush=True)


def _size(job: "Job") -> str:
    denoised, images = ("x".join(map(str, (*shape[1:], shape[0]))) for shape in (job.shape, job.image_shape))
    return images if denoised == images else f"{images} from latents of {denoised}"


def _parameters(job: "Job") -> str:
    network = getattr(job.denoiser, "network", None)
    return "" if network is None else f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters, "


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "sample", SampleConfig)


if __name__ == "__main__":
    command()
