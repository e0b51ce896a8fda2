"""How far a sampling run is, by what is in its folder."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sag.claims import is_claim
from sag.records import CONFIG, read_settings
from sag.sampling import shards
from sag.storage import Folder, open_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: How many samples are asked for.
        done: How many of them are made.
        finished: The path of the packed samples, or None while the run is not finished.
        shards: How many shards are written.
        hosts: The number of samples that each host made.
        per_second: Samples per second over the last minutes, of all processes together.
        claimed: How many shards processes are making now.
        abandoned: How many are claimed by processes that have ended.
        missing: The indices of the samples that are not made yet.
    """

    total: int
    done: int
    finished: str | None = None
    shards: int = 0
    hosts: Mapping[str, int] = field(default_factory=dict)
    per_second: float = 0.0
    claimed: int = 0
    abandoned: int = 0
    missing: Sequence[int] = ()

    @property
    def seconds_left(self) -> float | None:
        """The seconds until all samples are made, at the present speed; None if none was made in the last minutes."""
        return (self.total - self.done) / self.per_second if self.per_second else None


def progress(out: str | Path | Folder, minutes: float = 10.0) -> Progress:
    """Return how far a run is; the run may still be working.

    Example:
        >>> import sag
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=2", "sampler.steps=2", "device=cpu"]))
        >>> sampled = sag.sampling.run(job, "second")
        >>> sag.sampling.progress("second").finished
        'second/samples_2x32x32x3.npz'

    Args:
        out: The folder of the run, or its address.
        minutes: The speed is measured over this many last minutes.

    Returns:
        How much is done, by which hosts, how fast, and which samples are missing.

    Raises:
        ValueError: If there is no sampling run in the folder.
    """
    folder = out if isinstance(out, Folder) else open_folder(str(out))
    present, files = folder.names(shards.FOLDER), folder.names()
    if CONFIG not in files:
        begun = " yet; its first shard is being made" if present else "; give the folder of a run of scripts/sample.py as out="
        raise ValueError(f"{folder} holds no {CONFIG}{begun}")
    settings = read_settings(folder)
    if not {"num_samples", "indices"} <= set(settings):
        raise ValueError(f"{folder}/{CONFIG} is not that of a run of scripts/sample.py; give the folder of one as out=")
    indices = settings["indices"] or list(range(settings["num_samples"]))
    total = len(indices)
    packed = sorted(name for name in files if name.startswith(f"samples_{total}x") and name.endswith(".npz"))
    if packed:
        return Progress(total, total, f"{folder}/{packed[0]}")
    made: dict[str, Mapping[str, Any]] = {}
    rows: dict[str, range] = {}
    for name in sorted(present):
        held = shards.shard_rows(name)
        if held is None:
            continue
        try:
            made[name], rows[name] = shards.read_shard(folder, f"{shards.FOLDER}/{name}").made, held
        except shards.DamagedShard as error:
            logger.warning("%s; it will be made again", error)
        except FileNotFoundError:  # the run goes on: packed just now, perhaps
            return progress(folder, minutes)
    hosts: dict[str, int] = {}
    for name, facts in made.items():
        hosts[facts["host"]] = hosts.get(facts["host"], 0) + len(rows[name])
    missing = sorted(set(range(total)).difference(*rows.values()))
    claims = [f"{shards.FOLDER}/{name}" for name in present if name.endswith(".claim")]
    abandoned = sum(is_claim(folder, name, dead=True) for name in claims)
    return Progress(
        total,
        total - len(missing),
        shards=len(made),
        hosts=dict(sorted(hosts.items())),
        per_second=_speed(list(made.values()), [len(own) for own in rows.values()], minutes),
        claimed=len(claims) - abandoned,
        abandoned=abandoned,
        missing=[indices[row] for row in missing],
    )


def _speed(made: Sequence[Mapping[str, Any]], sizes: Sequence[int], minutes: float) -> float:
    now = time.time()
    recent = [(shard, size) for shard, size in zip(made, sizes, strict=True) if now - shard["time"] < 60 * minutes]
    if not recent:
        return 0.0
    begun = min(shard["time"] - shard["seconds"] for shard, _ in recent)
    return float(sum(size for _, size in recent) / max(now - begun, 1e-9))
