"""Sample images with any guidance: python scripts/sample.py model=... guidance=[sag,classifier] num_samples=..."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import build_guidance, check_folder, device_name, load, pick_device, provenance, run, to_json
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from sag import storage
from sag.diffusion import Denoiser, Sampler, sample
from sag.guidance import ClassifierGuidance, Guidance, GuidedDenoiser
from sag.models import UNet, UpsamplingUNet
from sag.noise import SampleNoise, sample_labels

GRID = 64  # at most so many images in the picture
BAR = "{percentage:3.0f}% |{bar}| {n:.0f}/{total_fmt} images, {rate_fmt}, {remaining} left"


@dataclass
class SampleConfig:
    """The keys of configs/sample.yaml and their types; the values are there."""

    model: Any = MISSING
    classifier: Any = None
    sampler: Any = MISSING
    guidance: dict[str, Any] = field(default_factory=dict)
    num_samples: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    indices: list[int] | None = None
    labels: Any = MISSING
    low_res: str | None = None
    precision: str = MISSING
    compile: bool = MISSING
    device: str = MISSING
    out: str | None = None


ConfigStore.instance().store("sample_schema", SampleConfig)


def identity(cfg: DictConfig) -> DictConfig:
    """The settings that decide what is sampled: all but where it runs and where it is written."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return OmegaConf.create({key: value for key, value in settings.items() if key not in ("out", "device")})


def out_folder(cfg: DictConfig) -> Path:
    """The folder of `out`, or one under outputs/ named by the settings."""
    if cfg.out is not None:
        return Path(cfg.out)
    techniques = "+".join(cfg.guidance) or "none"
    return (
        Path("outputs") / f"{cfg.model.name}-{techniques}-{sha256(OmegaConf.to_yaml(identity(cfg)).encode()).hexdigest()[:8]}"
    )


def choose_indices(cfg: DictConfig) -> list[int]:
    """Which samples are made.

    Raises:
        ValueError: none, a negative or repeated one, or an impossible batch size.
    """
    if cfg.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {cfg.batch_size}")
    if cfg.indices is None:
        if cfg.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {cfg.num_samples}")
        return list(range(cfg.num_samples))
    indices = list(cfg.indices)
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise ValueError(f"indices must be one or more different whole numbers >= 0, got {indices}")
    return indices


def choose_labels(
    cfg: DictConfig, indices: Sequence[int], denoiser: Denoiser, guidance: Sequence[Guidance]
) -> list[int] | None:
    """The labels of the samples, or None where neither network nor guidance has classes.

    Raises:
        ValueError: labels out of range, or networks that disagree on the number of classes.
    """
    network = denoiser.network
    classes = {} if network.num_classes is None else {"the model": network.num_classes - (denoiser.null_label is not None)}
    for g in guidance:
        if isinstance(g, ClassifierGuidance):
            classes["the classifier"] = g.classifier.num_classes
    if len(set(classes.values())) > 1:
        model, classifier = classes.values()
        raise ValueError(f"the model has {model} classes, but the classifier {classifier}; choose another classifier=")
    labels: Any = OmegaConf.to_object(cfg.labels) if OmegaConf.is_list(cfg.labels) else cfg.labels
    if not classes:
        if labels not in ("random", "none"):
            raise ValueError(f"this model is unconditional: labels={labels} has no use; leave it out")
        return None
    chosen = sample_labels(labels, cfg.seed, indices, next(iter(classes.values())))
    if chosen is None and "the classifier" in classes:
        raise ValueError("labels=none leaves classifier guidance without a class to guide to; leave one of them out")
    if chosen is None and network.num_classes is not None:
        if denoiser.null_label is None:
            raise ValueError("labels=none needs a model with a null class; this one is class-conditional only")
        return [denoiser.null_label] * len(indices)
    return chosen


def read_low_res(cfg: DictConfig, network: UNet, indices: Sequence[int]) -> tuple[storage.ImageSource | None, list[int] | None]:
    """The low-resolution images (and labels) of the samples for an upsampling model, else (None, None).

    Raises:
        ValueError: low_res missing, not wanted, with fewer images than are asked for, or with labels the model does not have.
    """
    upsampling = isinstance(network, UpsamplingUNet)
    if upsampling != (cfg.low_res is not None):
        raise ValueError(
            "an upsampling model needs low_res=samples.npz, the low-resolution samples to enlarge"
            if upsampling
            else f"low_res={cfg.low_res} is for upsampling models (model=adm_upsample_64_256, ...) only"
        )
    if not upsampling:
        return None, None
    images = storage.NpzImages(cfg.low_res)
    labels = images.labels()
    if max(indices) >= len(images):
        raise ValueError(
            f"{cfg.low_res} holds {len(images)} images, but sample {max(indices)} is asked for; set num_samples={len(images)}"
        )
    if labels is not None and network.num_classes is not None and not 0 <= labels.min() <= labels.max() < network.num_classes:
        raise ValueError(f"{cfg.low_res} has labels outside [0, {network.num_classes}), the classes of model={cfg.model.name}")
    rows = np.asarray(indices)
    return storage.SelectedImages(images, rows), None if labels is None else labels[rows].tolist()


def describe(cfg: DictConfig, network: UNet, denoiser: GuidedDenoiser, device: torch.device, out: Path, count: int) -> None:
    """Print what will run, a line for each thing a user wants to check."""
    steps = len(denoiser.diffusion.schedule)
    passes = sorted({denoiser.passes(t) for t in range(steps)})
    gradients = sum(isinstance(g, ClassifierGuidance) and g.scale != 0 for g in denoiser.guidance)
    parameters = sum(p.numel() for p in network.parameters())
    size = f"{network.image_size}x{network.image_size}x{network.image_channels}"
    print(f"model     {cfg.model.name}: {parameters / 1e6:.1f} M parameters, {size}, weights {cfg.model.checkpoint}")
    print(f"device    {device} ({device_name(device)}), {cfg.precision}{', compiled' if cfg.compile else ''}")
    print(f"sampler   {type(instantiate(cfg.sampler)).__name__}, {steps} steps")
    for name, arguments in cfg.guidance.items():
        options = {k: v if not OmegaConf.is_dict(v) else v.name for k, v in arguments.items() if k != "_target_"}
        print(f"guidance  {name}: {', '.join(f'{key} {value}' for key, value in options.items())}")
    per_step = " to ".join(map(str, passes if len(passes) < 3 else passes[:: len(passes) - 1]))
    print(f"passes    {per_step} per step{f', and {gradients} classifier gradient' if gradients else ''}")
    print(f"samples   {count}, seed {cfg.seed}, in batches of {cfg.batch_size}, to {out}", flush=True)


def record(cfg: DictConfig, indices: Sequence[int], device: torch.device, made: int, seconds: float) -> dict[str, Any]:
    """What a reader of the samples wants to know of how they came about."""
    return {
        "seed": cfg.seed,
        "indices": list(indices),
        **provenance(device),
        "threads": torch.get_num_threads(),
        "samples_made_in_this_run": made,
        "seconds": round(seconds, 3),
    }


def main(cfg: DictConfig) -> None:
    """Sample by the config, batch by batch, then pack; finished batches and finished runs are not made again."""
    indices = choose_indices(cfg)
    device = pick_device(cfg.device, cfg.precision)
    out, settings = out_folder(cfg), identity(cfg)
    check_folder(out, settings)

    network = load(cfg.model, device, cfg.precision, cfg.compile)
    guidance = build_guidance(cfg.guidance, lambda node: load(node, device, cfg.precision, cfg.compile))
    sampler: Sampler = instantiate(cfg.sampler)
    diffusion = instantiate(cfg.model.diffusion).respace(sampler.steps)
    denoiser = Denoiser(network, diffusion, cfg.model.null_label)
    low_res, low_res_labels = read_low_res(cfg, network, indices)
    labels = low_res_labels or choose_labels(cfg, indices, denoiser, guidance)
    shape = (network.image_channels, network.image_size, network.image_size)
    target = out / f"samples_{len(indices)}x{shape[1]}x{shape[2]}x{shape[0]}.npz"
    describe(cfg, network, GuidedDenoiser(denoiser, guidance), device, out, len(indices))
    if target.exists():
        print(f"done      {target} is there already, with these settings")
        return

    begin, made = time.perf_counter(), 0
    shards = []
    with tqdm(total=len(indices), unit="image", bar_format=BAR) as bar:
        for start in range(0, len(indices), cfg.batch_size):
            rows = slice(start, start + cfg.batch_size)
            shards.append(out / "shards" / f"{start:08d}.npz")
            if shards[-1].exists():
                bar.update(len(indices[rows]))
                continue
            noise = SampleNoise(cfg.seed, indices[rows], shape, device)
            batch = denoiser
            if low_res is not None:
                small = torch.from_numpy(low_res.read(rows.start, rows.stop)).permute(0, 3, 1, 2)
                batch = replace(denoiser, low_res=small.to(device) / 127.5 - 1)
            y = None if labels is None else torch.tensor(labels[rows], device=device)
            guided = GuidedDenoiser(batch, guidance, noise.mask)
            for step in sample(guided, sampler, noise.initial(), y, noise=noise.step):
                bar.update(start + len(step.x) * (1 - step.t / len(diffusion.schedule)) - bar.n)
            shards[-1].parent.mkdir(parents=True, exist_ok=True)
            if not (out / "config.yaml").exists():
                with storage.atomic(out / "config.yaml") as file:
                    file.write(OmegaConf.to_yaml(settings).encode())
            storage.write_shard(shards[-1], storage.quantise(step.x), None if labels is None else labels[rows], indices[rows])
            made += len(indices[rows])
    finish(out, target, shards, indices, record(cfg, indices, device, made, time.perf_counter() - begin))


def finish(out: Path, target: Path, shards: Sequence[Path], indices: Sequence[int], facts: dict[str, Any]) -> None:
    """Pack the shards into `target`, and write the picture and the record; the shards go last."""
    shown: list[storage.Images] = []
    for shard in shards:
        if len(shown) < GRID:
            shown += list(storage.read_samples(shard)[0][: GRID - len(shown)])
    images = np.stack(shown)
    picture = storage.grid(images[..., :3] if images.shape[3] >= 3 else images[..., :1])
    with storage.atomic(out / "grid.png") as file:
        Image.fromarray(picture.squeeze(axis=2) if picture.shape[2] == 1 else picture).save(file, "PNG")
    with storage.atomic(out / "record.json") as file:
        file.write(to_json(facts))
    storage.pack(shards, indices, target)
    for shard in shards:
        shard.unlink()
    shards[0].parent.rmdir()
    print(f"wrote     {target}, grid.png, config.yaml and record.json")


if __name__ == "__main__":
    run(main, "sample", SampleConfig)
