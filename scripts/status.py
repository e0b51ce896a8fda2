"""How far a run is: python scripts/status.py out=outputs/..."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from sag import storage
from sag.claims import is_claim
from sag.sampling import shards
from scripts.common import read_config, run
from scripts.sample import SHARDS


@dataclass
class StatusConfig:
    """The keys of configs/status.yaml and their types; the values are there."""

    minutes: float = MISSING
    out: str = MISSING


ConfigStore.instance().store("status_schema", StatusConfig)


def ranges(missing: Sequence[int]) -> str:
    """Ascending numbers as ranges: 0-3, 7, 9-12."""
    parts: list[list[int]] = []
    for number in missing:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def speed(made: Sequence[Mapping[str, Any]], sizes: Sequence[int], minutes: float) -> float:
    """Images per second of the shards that were finished in the last minutes."""
    now = time.time()
    recent = [(shard, size) for shard, size in zip(made, sizes, strict=True) if now - shard["time"] < 60 * minutes]
    if not recent:
        return 0.0
    begin = min(shard["time"] - shard["seconds"] for shard, _ in recent)
    return sum(size for _, size in recent) / max(now - begin, 1e-9)


def main(cfg: DictConfig) -> None:
    """Print what is done, by whom, how fast, and what is missing.

    Raises:
        ValueError: no run there.
    """
    out = storage.open_folder(cfg.out)
    present, files = out.names(SHARDS), out.names()
    if "config.yaml" not in files:
        begun = " yet; its first shard is being made" if present else "; give the folder of a run of scripts/sample.py as out="
        raise ValueError(f"{out} holds no config.yaml{begun}")
    settings = read_config(out)
    if not {"num_samples", "indices"} <= set(settings):
        raise ValueError(f"{out}/config.yaml is not that of a run of scripts/sample.py; give the folder of one as out=")
    indices = settings["indices"] or list(range(settings["num_samples"]))
    packed = sorted(name for name in files if name.startswith(f"samples_{len(indices)}x") and name.endswith(".npz"))
    if packed:
        print(f"finished  {out}/{packed[0]}")
        return
    made = {}
    for name in sorted(present):
        if shards.shard_rows(name) is None:
            continue
        try:
            made[name] = shards.read_shard(out, f"{SHARDS}/{name}").made
        except shards.DamagedShard as error:
            print(f"warning   {error}; it will be made again")
        except FileNotFoundError:  # the run goes on: packed just now, perhaps
            main(cfg)
            return
    rows = {name: shards.shard_rows(name) or range(0) for name in made}
    sizes = {name: len(own) for name, own in rows.items()}
    missing = sorted(set(range(len(indices))).difference(*rows.values()))
    done = len(indices) - len(missing)
    print(f"done      {done} of {len(indices)} samples, in {len(made)} shards")
    hosts: dict[str, int] = {}
    for name, facts in made.items():
        hosts[facts["host"]] = hosts.get(facts["host"], 0) + sizes[name]
    for host, count in sorted(hosts.items()):
        print(f"host      {host}: {count} samples")
    per_second = speed(list(made.values()), [sizes[name] for name in made], cfg.minutes)
    left = f", {duration((len(indices) - done) / per_second)} left" if per_second else ""
    print(f"speed     {per_second:.3g} images/s over the last {cfg.minutes:g} minutes{left}")
    claims = [f"{SHARDS}/{name}" for name in present if name.endswith(".claim")]
    dead = sum(is_claim(out, name, dead=True) for name in claims)
    print(f"at work   {len(claims) - dead} shards are claimed{f', {dead} more by processes that have ended' if dead else ''}")
    if missing:
        print(f"missing   samples {ranges([indices[row] for row in missing])}")


if __name__ == "__main__":
    run(main, "status", StatusConfig)
