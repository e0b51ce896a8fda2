"""A sampling run: shards made in turn by any number of processes, then checked and packed."""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sag.claims import Claims, is_claim, this_process
from sag.data import Images, picture
from sag.data.tensors import quantise
from sag.distributed import Process, Stop
from sag.records import CONFIG, LAYOUT, as_recorded, check_folder, provenance, read_settings, to_yaml
from sag.sampling import shards
from sag.sampling.earlier import EarlierSamples
from sag.sampling.job import Job
from sag.storage import RECORD, Folder, open_folder, own_files, refuse_foreign, to_json

GRID = 64  # at most so many images in the picture
PICTURE = "grid.png"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    """A finished run.

    Attributes:
        path: The npz of the samples: arr_0 (N, H, W, C) uint8 or uint16 and, with classes, arr_1 (N,) int64.
        labels: The classes, or None.
        record: How the samples were made: seed, indices, versions, commit, device, hosts, seconds, ...
        new: Whether the samples were not there before.
    """

    path: str
    labels: Sequence[int] | None
    record: Mapping[str, Any]
    new: bool


def run(
    job: Job,
    out: str | Path | Folder,
    process: Process | None = None,
    stop: Stop | None = None,
    watch: Callable[[float], object] = lambda done: None,
) -> Sampled:
    """Make the samples of a job, shard by shard, and pack them into one npz.

    Other processes with the same job may work on the folder at the same time. Samples that an earlier run with the same
    settings left are used again, and a finished run returns at once.

    Example:
        >>> import sag
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=2", "sampler.steps=2", "device=cpu"]))
        >>> sag.sampling.run(job, "first").path
        'first/samples_2x32x32x3.npz'

    Args:
        job: What is made.
        out: The folder, or its address in a blob store.
        process: This process among those that share the work; None is as the launcher says.
        stop: What asks this process to stop, checked between shards; None does not react to signals.
        watch: Called often with the number of samples that all processes together have made.

    Returns:
        The finished run.

    Raises:
        ValueError: If the folder holds results of other settings, a file that no such run wrote is in the way, or samples are
            equal to the bit.
        FloatingPointError: If the values of a sample do not stay finite.
        SystemExit: If `stop` asked to stop; the current shard is written first.
    """
    process = process or Process.current()
    folder = out if isinstance(out, Folder) else open_folder(str(out))
    job = replace(job, settings=as_recorded(folder, job.recorded, LAYOUT))
    check_place(job, folder)
    new = not finished(job, folder)
    if new and process.main:
        remove_damaged(job, folder)
    with stop or contextlib.nullcontext():
        while not finished(job, folder):
            work(job, folder, process, stop, watch)
            finish(job, folder, process)
    tidy(job, folder)
    return Sampled(f"{folder}/{job.target}", job.labels, json.loads(folder.read(RECORD)), new)


def check_place(job: Job, out: Folder) -> None:
    """Refuse a folder that has files of somebody else where this run writes its own.

    A run writes config.yaml first, then its shards, then everything else. So without a config.yaml, no run wrote the shards;
    with one, the shards belong to runs with these settings.

    Raises:
        ValueError: If there are results of other settings, or a file that no run with these settings wrote.
    """
    present = out.names(shards.FOLDER)  # before the names in `out`, where another process may just begin
    check_folder(out, job.recorded, LAYOUT)
    if out.exists(CONFIG):
        own = own_files(out, job.key)
    else:
        own = set()
        strangers = {name for name in present if not is_claim(out, f"{shards.FOLDER}/{name}")}
        refuse_foreign(out, {f"{shards.FOLDER}/{name}" for name in strangers}, own)
    if shards.FOLDER in out.names():
        raise ValueError(f"{out}/{shards.FOLDER} is a file, where the run needs a folder; give another out, or move it away")
    refuse_foreign(out, {RECORD, PICTURE, job.target}, own)


def finished(job: Job, out: Folder) -> bool:
    """Return whether the packed samples are there.

    Raises:
        ValueError: If they are, and no run with these settings made them.
    """
    if job.target not in out.names():
        return False
    check_place(job, out)
    return True


def remove_damaged(job: Job, out: Folder) -> None:
    """Remove the shards that are damaged, so that they are made again.

    Raises:
        ValueError: If a shard has other settings.
    """
    for name in sorted(out.names(shards.FOLDER) & set(job.shards)):
        try:
            if shards.read_shard(out, f"{shards.FOLDER}/{name}").settings != job.key:
                raise ValueError(
                    f"{out}/{shards.FOLDER}/{name} is a shard of a run with other settings; remove it, or give another out"
                )
        except shards.DamagedShard as error:
            logger.warning("%s; it is made again", error)
            out.remove(error.name)
        except FileNotFoundError:  # another process has just removed it
            continue


def find_earlier(job: Job, out: Folder) -> EarlierSamples:
    """Find the samples that earlier runs with another length or batch size left in `out`."""
    own = own_files(out, job.key) & out.names()
    counts = {name: int(count[1]) for name in own if (count := re.match(r"samples_(\d+)x", name))}
    packed = {name: count for name, count in counts.items() if name == job.batch(count)}
    return EarlierSamples(out, shards.FOLDER, job.key, job.shards, packed if job.recorded["indices"] is None else {})


def begin(job: Job, out: Folder) -> None:
    """Write config.yaml, which claims the folder. It replaces the file of a run with another length or batch size.

    Raises:
        ValueError: If a run with other settings has begun here meanwhile.
    """
    config = to_yaml(job.recorded).encode()
    if out.create(CONFIG, config):
        return
    check_folder(out, job.recorded, LAYOUT)
    there = out.read(CONFIG)
    if there != config and there == to_yaml(read_settings(out)).encode():  # otherwise somebody edited it
        out.write(CONFIG, config)


def work(job: Job, out: Folder, process: Process, stop: Stop | None, watch: Callable[[float], object]) -> None:
    """Make the missing shards, sharing them with all other processes of this job.

    Raises:
        SystemExit: If a signal asked to stop; the current shard is finished first.
    """
    claims = Claims(out, shards.FOLDER, process)

    def over() -> bool:
        if stop is not None:
            stop.check()
        return job.target in out.names()

    with find_earlier(job, out) as earlier:
        for name in claims.take(list(job.shards), finished=over):
            rows, begun, done = job.shards[name], time.monotonic(), claims.done * job.batch_size

            def progressed(share: float, done: int = done, count: int = len(rows)) -> None:
                claims.beat()
                watch(min(done + count * share, len(job.indices)))

            images = earlier.read(rows)
            missing = [row for row in rows if row not in images]
            if missing:
                images |= dict(zip(missing, quantise(job.make(missing, progressed), job.bits), strict=True))
            begin(job, out)
            made = {**this_process(), "rank": process.rank, "time": time.time(), "seconds": time.monotonic() - begun}
            wanted = list(job.indices[rows.start : rows.stop])
            indices: Any = np.array(wanted, np.int64 if max(wanted) < 2**63 else np.uint64)
            shard = shards.Shard(
                np.stack([images[row] for row in rows]),
                None if job.labels is None else np.asarray(job.labels[rows.start : rows.stop]),
                indices,
                job.key,
                {**made, "reused": len(rows) - len(missing)},
            )
            shards.write_shard(out, f"{shards.FOLDER}/{name}", shard)


def finish(job: Job, out: Folder, process: Process) -> None:
    """Let one process check the shards, write the record and the picture, and pack the samples, which finishes the run.

    If a shard is damaged, it is removed and nothing is packed. Nothing is packed either if another process removes shards
    meanwhile: it found them damaged, or it took this process for dead and packed them itself.

    Raises:
        ValueError: If a file that no such run wrote is in the way, or samples are equal.
    """
    claims = Claims(out, shards.FOLDER, process)

    def over() -> bool:
        return job.target in out.names() or not set(job.shards) <= out.names(shards.FOLDER)

    for _ in claims.take([job.target], finished=over):  # among the shards there is only the claim of the target
        names = [f"{shards.FOLDER}/{name}" for name in job.shards]
        try:
            contents = shards.check_shards(out, names, job.indices, job.key, claims.beat, job.duplicates)
            shown: list[Images] = []
            for name in names[: -(-GRID // job.batch_size)]:
                shown += list(shards.read_shard(out, name).images[: GRID - len(shown)])
            check_place(job, out)
            out.write(RECORD, to_json(_record(job, contents.made, own_files(out, job.key))))
            with out.writer(PICTURE) as file:
                Image.fromarray(picture(np.stack(shown))).save(file, "PNG")
            shards.pack(out, names, contents, job.target, claims.beat)
        except shards.DamagedShard as error:
            logger.warning("%s; it is made again", error)
            out.remove(error.name)
            return
        except FileNotFoundError:
            return
        if contents.warning is not None:
            logger.warning("%s", contents.warning)


def _record(job: Job, made: Sequence[Mapping[str, Any]], own: Collection[str]) -> dict[str, Any]:
    """Return how the samples were made, and the list of the run's own files.

    Args:
        job: The run.
        made: How each shard was made.
        own: Files of earlier runs with these settings.
    """
    return {
        "seed": job.seed,
        "indices": list(job.indices),
        **provenance(job.device),
        "threads": torch.get_num_threads(),
        "hosts": sorted({shard["host"] for shard in made}),
        "processes": len({(shard["host"], shard["pid"], shard["started"]) for shard in made}),
        "seconds": round(sum(shard["seconds"] for shard in made), 3),  # of all processes together, without loading and packing
        "wall_seconds": round(max(s["time"] for s in made) - min(s["time"] - s["seconds"] for s in made), 3),
        "reused": sum(shard["reused"] for shard in made),  # samples of earlier runs with another length or batch size
        "settings": job.key,
        "files": sorted({*own, PICTURE, job.target} - {RECORD}),
    }


def tidy(job: Job, out: Folder) -> None:
    """Remove what only an unfinished run needs. Every process does so at its end, since it may have written something late."""
    for name in out.names(shards.FOLDER):
        shard = name.removesuffix(".claim")
        if shard in job.shards or shard == job.target or _is_own_shard(job, out, name):
            out.remove(f"{shards.FOLDER}/{name}")
    out.remove_leftovers(shards.FOLDER, r"\d{8,}-\d{8,}\.npz(\.claim)?|" + re.escape(f"{job.target}.claim"))
    out.remove_leftovers("", "|".join(map(re.escape, [CONFIG, PICTURE, RECORD, job.target])))


def _is_own_shard(job: Job, out: Folder, name: str) -> bool:
    """Return whether this is a shard, or the claim of a dead process, of a run that differs only in length or batch size."""
    if shards.shard_rows(name.removesuffix(".claim")) is None:
        return False
    if name.endswith(".claim"):
        return is_claim(out, f"{shards.FOLDER}/{name}", dead=True)
    try:
        return shards.read_shard(out, f"{shards.FOLDER}/{name}").settings == job.key
    except (shards.DamagedShard, FileNotFoundError):
        return False
