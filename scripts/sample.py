"""Sample images with any guidance: python scripts/sample.py model=... guidance=[sag,classifier] num_samples=..."""

import re
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from sag import storage
from sag.claims import Claims, is_claim, this_process
from sag.data import BITS, Images, ImageSource, NpzImages, SelectedImages
from sag.data.tensors import dequantise, quantise
from sag.diffusion import Denoiser, Sampler, sample
from sag.distributed import Process, Stop
from sag.guidance import ClassifierGuidance, Guidance, GuidedDenoiser
from sag.models import UNet, UpsamplingUNet
from sag.noise import SampleNoise, sample_labels
from sag.sampling import shards
from sag.sampling.earlier import EarlierSamples
from scripts.common import build_guidance, check_folder, device_name, image_size, load, pick_device, provenance, run

GRID = 64  # at most so many images in the picture
PICTURE = "grid.png"
SHARDS = "shards"
UNSETTLING = ("out", "device", "duplicates", "published")  # keys that decide nothing about the samples
LAYOUT = ("num_samples", "batch_size")  # keys that decide how many samples there are and how they are made, but no sample
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
    size: list[int] | None = None
    bits: int = MISSING
    labels: Any = MISSING
    low_res: str | None = None
    precision: str = MISSING
    compile: bool = MISSING
    device: str = MISSING
    out: str | None = None
    duplicates: str | None = None
    published: Any = None


ConfigStore.instance().store("sample_schema", SampleConfig)


def identity(cfg: DictConfig) -> DictConfig:
    """The settings of a run: all but where it runs, where it is written, what it refuses, and what others published."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return OmegaConf.create({key: value for key, value in settings.items() if key not in UNSETTLING})


def fingerprint(settings: DictConfig) -> str:
    """A hash of the settings."""
    return sha256(OmegaConf.to_yaml(settings).encode()).hexdigest()


def shared_fingerprint(cfg: DictConfig) -> str:
    """A hash of the settings that runs on one folder share: a run may continue one with fewer samples or larger batches."""
    settings = identity(cfg)
    return fingerprint(OmegaConf.masked_copy(settings, [str(key) for key in settings if key not in LAYOUT]))


def out_folder(cfg: DictConfig) -> storage.Folder:
    """The folder of `out`, or one under outputs/ named by the settings."""
    techniques = "+".join(cfg.guidance) or "none"
    return storage.open_folder(cfg.out or f"outputs/{cfg.model.name}-{techniques}-{shared_fingerprint(cfg)[:8]}")


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


def read_low_res(cfg: DictConfig, network: UNet, indices: Sequence[int]) -> tuple[ImageSource | None, list[int] | None]:
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
    images = NpzImages(cfg.low_res)
    labels = images.labels()
    if max(indices) >= len(images):
        raise ValueError(
            f"{cfg.low_res} holds {len(images)} images, but sample {max(indices)} is asked for; set num_samples={len(images)}"
        )
    if labels is not None and network.num_classes is not None and not 0 <= labels.min() <= labels.max() < network.num_classes:
        raise ValueError(f"{cfg.low_res} has labels outside [0, {network.num_classes}), the classes of {cfg.model.name}")
    rows = np.asarray(indices)
    return SelectedImages(images, rows), None if labels is None else labels[rows].tolist()


def describe(job: "Job", out: storage.Folder) -> None:
    """Print what will run, a line for each thing a user wants to check."""
    cfg, network, denoiser = job.cfg, job.denoiser.network, GuidedDenoiser(job.denoiser, job.guidance)
    steps = len(denoiser.diffusion.schedule)
    passes = sorted({denoiser.passes(t, job.shape) for t in range(steps)})
    gradients = sum(isinstance(g, ClassifierGuidance) and g.scale != 0 for g in denoiser.guidance)
    parameters = sum(p.numel() for p in network.parameters())
    channels, height, width = job.shape
    size = f"{height}x{width}x{channels}"
    print(f"model     {cfg.model.name}: {parameters / 1e6:.1f} M parameters, {size}, weights {cfg.model.checkpoint}")
    print(f"precision {cfg.precision}{', compiled' if cfg.compile else ''}")
    print(f"sampler   {type(instantiate(cfg.sampler)).__name__}, {steps} steps")
    for name, arguments in cfg.guidance.items():
        options = {k: v if not OmegaConf.is_dict(v) else v.get("name", v) for k, v in arguments.items() if k != "_target_"}
        print(f"guidance  {name}: {', '.join(f'{key} {value}' for key, value in options.items())}")
    per_step = " to ".join(map(str, passes if len(passes) < 3 else passes[:: len(passes) - 1]))
    print(f"passes    {per_step} per step{f', and {gradients} classifier gradient' if gradients else ''}")
    print(f"samples   {len(job.indices)}, seed {cfg.seed}, in batches of {cfg.batch_size}, to {out}", flush=True)


def record(job: "Job", made: Sequence[Mapping[str, Any]], own: Collection[str]) -> dict[str, Any]:
    """What a reader of the samples wants to know of how they came about; it is also the run's record of its own files.

    Args:
        job: The run.
        made: What the shards say of how they were made.
        own: Files of earlier runs with these settings.
    """
    return {
        "seed": job.cfg.seed,
        "indices": job.indices,
        **provenance(job.device),
        "threads": torch.get_num_threads(),
        "hosts": sorted({shard["host"] for shard in made}),
        "processes": len({(shard["host"], shard["pid"], shard["started"]) for shard in made}),
        "seconds": round(sum(shard["seconds"] for shard in made), 3),  # of all processes together, without loading and packing
        "wall_seconds": round(max(s["time"] for s in made) - min(s["time"] - s["seconds"] for s in made), 3),
        "reused": sum(shard["reused"] for shard in made),  # samples of earlier runs with another length or batch size
        "settings": job.key,
        "files": sorted({*own, PICTURE, job.target} - {storage.RECORD}),
    }


@dataclass(frozen=True)
class Job:
    """What the samples of a run are made from; key: a hash of the settings that runs on one folder share."""

    cfg: DictConfig
    indices: list[int]
    labels: list[int] | None
    denoiser: Denoiser
    guidance: list[Guidance]
    sampler: Sampler
    low_res: ImageSource | None
    device: torch.device
    key: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image as the network makes it."""
        network = self.denoiser.network
        return network.image_channels, *image_size(network, self.cfg.size)

    def batch(self, count: int) -> str:
        """The name of `count` packed samples."""
        channels, height, width = self.shape
        stored = 3 if channels == 1 and self.cfg.bits == 8 else channels  # as quantise
        return f"samples_{count}x{height}x{width}x{stored}.npz"

    @property
    def target(self) -> str:
        """The name of the packed samples."""
        return self.batch(len(self.indices))

    @property
    def shards(self) -> dict[str, range]:
        """The rows of `indices` in each shard, by its name; fixed by the number of samples and the batch size."""
        count, size = len(self.indices), self.cfg.batch_size
        rows = (range(start, min(start + size, count)) for start in range(0, count, size))
        return {shards.shard_name(own): own for own in rows}


def prepare(cfg: DictConfig) -> Job:
    """Load and check all that the config names.

    Raises:
        ValueError: what cannot be sampled; nothing is written.
    """
    if cfg.bits not in BITS:
        raise ValueError(f"bits must be 8 or 16, got {cfg.bits}")
    if cfg.duplicates not in (None, "refuse", "warn"):
        raise ValueError(f"duplicates must be refuse, warn or null, got {cfg.duplicates!r}")
    indices, device = choose_indices(cfg), pick_device(cfg.device, cfg.precision)
    network = load(cfg.model, device, cfg.precision, cfg.compile)
    guidance = build_guidance(cfg.guidance, lambda node: load(node, device, cfg.precision, cfg.compile))
    sampler: Sampler = instantiate(cfg.sampler)
    denoiser = Denoiser(network, instantiate(cfg.model.diffusion).respace(sampler.steps), cfg.model.null_label)
    image_size(network, cfg.size)
    low_res, low_res_labels = read_low_res(cfg, network, indices)
    labels = low_res_labels or choose_labels(cfg, indices, denoiser, guidance)
    return Job(cfg, indices, labels, denoiser, guidance, sampler, low_res, device, shared_fingerprint(cfg))


def make(job: Job, rows: Sequence[int], watch: Callable[[float], None]) -> torch.Tensor:
    """The images of some rows, (n, C, H, W) in [-1, 1]; `watch` is called after every step with the share that is done."""
    noise = SampleNoise(job.cfg.seed, [job.indices[row] for row in rows], job.shape, job.device)
    low_res = None if job.low_res is None else dequantise(job.low_res.take(np.asarray(rows)), job.device)
    y = None if job.labels is None else torch.tensor([job.labels[row] for row in rows], device=job.device)
    condition = job.denoiser.condition(y, low_res)
    guided = GuidedDenoiser(job.denoiser, job.guidance, noise.mask)
    for step in sample(guided, job.sampler, noise.initial(), condition, noise=noise.step):
        watch(1 - step.t / len(job.denoiser.diffusion.schedule))
    return job.denoiser.decode(step.x)


def check_place(job: Job, out: storage.Folder) -> None:
    """Refuse a folder in which this run would come across files of somebody else.

    The first shard comes after config.yaml, and all else after the first shard. So where there is no config.yaml, no such file
    is a run's; and where there is one, the shards are those of runs with these settings.

    Raises:
        ValueError: results of other settings, or a file that no run with these settings wrote.
    """
    present = out.names(SHARDS)  # before the names in `out`, where another process may just begin
    check_folder(out, identity(job.cfg), LAYOUT)
    if out.exists("config.yaml"):
        own = storage.own_files(out, job.key)
    else:
        own = set()
        strangers = {name for name in present if not is_claim(out, f"{SHARDS}/{name}")}
        storage.refuse_foreign(out, {f"{SHARDS}/{name}" for name in strangers}, own)
    if SHARDS in out.names():
        raise ValueError(f"{out}/{SHARDS} is a file, where the run needs a folder; give another out, or move it away")
    storage.refuse_foreign(out, {storage.RECORD, PICTURE, job.target}, own)


def remove_damaged(job: Job, out: storage.Folder) -> None:
    """Remove the shards that are damaged, so that they are made again.

    Raises:
        ValueError: a shard of other settings.
    """
    for name in sorted(out.names(SHARDS) & set(job.shards)):
        try:
            if shards.read_shard(out, f"{SHARDS}/{name}").settings != job.key:
                raise ValueError(
                    f"{out}/{SHARDS}/{name} is a shard of a run with other settings; remove it, or give another out"
                )
        except shards.DamagedShard as error:
            print(f"warning   {error}; it is made again", flush=True)
            out.remove(error.name)
        except FileNotFoundError:  # another process removed it just now, as it is damaged or packed
            continue


def find_earlier(job: Job, out: storage.Folder) -> EarlierSamples:
    """The samples that earlier runs with another length or batch size left in `out`."""
    own = storage.own_files(out, job.key) & out.names()
    counts = {name: int(count[1]) for name in own if (count := re.match(r"samples_(\d+)x", name))}
    packed = {name: count for name, count in counts.items() if name == job.batch(count)}
    return EarlierSamples(out, SHARDS, job.key, job.shards, packed if job.cfg.indices is None else {})


def begin(job: Job, out: storage.Folder) -> None:
    """Write config.yaml, which says whose folder this is; one of a run with another length or batch size is replaced.

    Raises:
        ValueError: a run with other settings has begun here meanwhile.
    """
    config = OmegaConf.to_yaml(identity(job.cfg)).encode()
    if out.create("config.yaml", config):
        return
    check_folder(out, identity(job.cfg), LAYOUT)
    there = out.read("config.yaml")
    if there != config and there == OmegaConf.to_yaml(OmegaConf.create(there.decode())).encode():  # else it is edited by hand
        out.write("config.yaml", config)


def work(job: Job, out: storage.Folder, process: Process, stop: Stop) -> None:
    """Make the shards that are not there, in turn with all other processes that work at them.

    Raises:
        SystemExit: a signal asked to stop; the shard in hand is finished.
    """
    claims = Claims(out, SHARDS, process)

    def over() -> bool:
        stop.check()
        return job.target in out.names()

    bar = tqdm(total=len(job.indices), unit="image", bar_format=BAR, disable=not process.main)
    with bar, find_earlier(job, out) as earlier:
        for name in claims.take(list(job.shards), finished=over):
            rows, begun, done = job.shards[name], time.monotonic(), claims.done * job.cfg.batch_size

            def watch(share: float, done: int = done, count: int = len(rows)) -> None:
                claims.beat()
                bar.update(min(done + count * share, len(job.indices)) - bar.n)

            images = earlier.read(rows)
            missing = [row for row in rows if row not in images]
            if missing:
                images |= dict(zip(missing, quantise(make(job, missing, watch), job.cfg.bits), strict=True))
            begin(job, out)
            made = {**this_process(), "rank": process.rank, "time": time.time(), "seconds": time.monotonic() - begun}
            wanted = job.indices[rows.start : rows.stop]
            indices: Any = np.array(wanted, np.int64 if max(wanted) < 2**63 else np.uint64)
            shard = shards.Shard(
                np.stack([images[row] for row in rows]),
                None if job.labels is None else np.asarray(job.labels[rows.start : rows.stop]),
                indices,
                job.key,
                {**made, "reused": len(rows) - len(missing)},
            )
            shards.write_shard(out, f"{SHARDS}/{name}", shard)


def finish(job: Job, out: storage.Folder, process: Process) -> None:
    """Let one process check the shards, write the record and the picture, and pack the target; with it the run is done.

    If a shard turns out to be damaged it is removed, and nothing is packed. Nor is it where another process takes shards away
    meanwhile: it found them damaged, or this process seemed dead to it and it has packed them.

    Raises:
        ValueError: a file of somebody else is in the way, or samples are equal.
    """
    claims = Claims(out, SHARDS, process)

    def over() -> bool:
        return job.target in out.names() or not set(job.shards) <= out.names(SHARDS)

    for _ in claims.take([job.target], finished=over):  # it is never among the shards: its claim is
        names = [f"{SHARDS}/{name}" for name in job.shards]
        try:
            contents = shards.check_shards(out, names, job.indices, job.key, claims.beat, job.cfg.duplicates)
            shown: list[Images] = []
            for name in names[: -(-GRID // job.cfg.batch_size)]:
                shown += list(shards.read_shard(out, name).images[: GRID - len(shown)])
            check_place(job, out)
            out.write(storage.RECORD, storage.to_json(record(job, contents.made, storage.own_files(out, job.key))))
            with out.writer(PICTURE) as file:
                Image.fromarray(shards.picture(np.stack(shown))).save(file, "PNG")
            shards.pack(out, names, contents, job.target, claims.beat)
        except shards.DamagedShard as error:
            print(f"warning   {error}; it is made again", flush=True)
            out.remove(error.name)
            return
        except FileNotFoundError:
            return
        if contents.warning is not None:
            print(f"warning   {contents.warning}", flush=True)
        print(f"wrote     {out}/{job.target}, {PICTURE}, config.yaml and {storage.RECORD}", flush=True)


def finished(job: Job, out: storage.Folder) -> bool:
    """Whether the target is there.

    Raises:
        ValueError: it is, and no run with these settings made it.
    """
    if job.target not in out.names():
        return False
    check_place(job, out)
    return True


def tidy(job: Job, out: storage.Folder) -> None:
    """Remove what only an unfinished run needs; every process does so when it ends, in case it wrote something late."""
    for name in out.names(SHARDS):
        shard = name.removesuffix(".claim")
        if shard in job.shards or shard == job.target or is_own_shard(job, out, name):
            out.remove(f"{SHARDS}/{name}")
    out.remove_leftovers(SHARDS, r"\d{8,}-\d{8,}\.npz(\.claim)?|" + re.escape(f"{job.target}.claim"))
    out.remove_leftovers("", "|".join(map(re.escape, ["config.yaml", PICTURE, storage.RECORD, job.target])))


def is_own_shard(job: Job, out: storage.Folder, name: str) -> bool:
    """Whether this is a shard, or a dead process's claim, of a run with these settings and another length or batch size."""
    if shards.shard_rows(name.removesuffix(".claim")) is None:
        return False
    if name.endswith(".claim"):
        return is_claim(out, f"{SHARDS}/{name}", dead=True)
    try:
        return shards.read_shard(out, f"{SHARDS}/{name}").settings == job.key
    except (shards.DamagedShard, FileNotFoundError):
        return False


def produce(cfg: DictConfig) -> tuple[storage.Folder, str]:
    """Sample by the config, shard by shard as other processes leave them, then pack; what is finished is not made again.

    Returns:
        The folder, and the name of the packed samples in it.
    """
    process, out = Process.current(), out_folder(cfg)
    check_folder(out, identity(cfg), LAYOUT)
    job = prepare(cfg)
    check_place(job, out)
    if process.main:
        describe(job, out)
    device = f"{job.device} ({device_name(job.device)})"
    print(f"process   rank {process.rank} of {process.world} on {socket.gethostname()}, {device}", flush=True)
    if finished(job, out):
        print(f"done      {out}/{job.target} is there already, with these settings")
    elif process.main:
        remove_damaged(job, out)
    with Stop() as stop:
        while not finished(job, out):
            work(job, out, process, stop)
            finish(job, out, process)
    tidy(job, out)
    return out, job.target


def main(cfg: DictConfig) -> None:
    """Sample by the config."""
    produce(cfg)


if __name__ == "__main__":
    run(main, "sample", SampleConfig)
