"""How far a run is: python scripts/status.py out=outputs/..."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING, DictConfig

import sag
from scripts.common import run


@dataclass
class StatusConfig:
    """The keys of configs/status.yaml and their types; the values are there."""

    minutes: float = MISSING
    out: str = MISSING


def main(cfg: DictConfig) -> None:
    """Print what is done, by whom, how fast, and what is missing."""
    progress = sag.sampling.progress(cfg.out, cfg.minutes)
    if progress.finished is not None:
        print(f"finished  {progress.finished}")
        return
    print(f"done      {progress.done} of {progress.total} samples, in {progress.shards} shards")
    for host, count in progress.hosts.items():
        print(f"host      {host}: {count} samples")
    left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
    print(f"speed     {progress.per_second:.3g} images/s over the last {cfg.minutes:g} minutes{left}")
    ended = f", {progress.abandoned} more by processes that have ended" if progress.abandoned else ""
    print(f"at work   {progress.claimed} shards are claimed{ended}")
    if progress.missing:
        print(f"missing   samples {ranges(progress.missing)}")


def ranges(missing: Sequence[int]) -> str:
    """Return ascending numbers as ranges: 0-3, 7, 9-12."""
    parts: list[list[int]] = []
    for number in missing:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def duration(seconds: float) -> str:
    """Return hours and minutes, or minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "status", StatusConfig)


if __name__ == "__main__":
    command()
