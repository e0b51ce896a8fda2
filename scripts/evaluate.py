"""Score samples: python scripts/evaluate.py samples=samples.npz reference=reference.npz"""

import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from evaluations.evaluate_config import EvaluateConfig
from sag.distributed import Process
from scripts.common import run

if TYPE_CHECKING:
    from evaluations.published import Published
    from evaluations.score_files import Scored


def main(cfg: DictConfig) -> None:
    """Score by the config, print a table and write a JSON; existing scores are only printed."""
    if cfg.self_check:
        from evaluations.self_check import self_check

        good = True
        for check in self_check():
            result = "ok" if check.passed else "FAILED"
            print(f"{check.title:<78} error {check.error:8.1e}  bound {check.bound:7.1e}  {result}", flush=True)
            good &= check.passed
        sys.exit(0 if good else "error: the self-check failed; see the lines marked FAILED")
    from evaluations.build import published, score  # these import torch, which --help does without

    process = Process.current()
    scored = score(cfg, process, progress=True)
    if scored is None:
        print(f"rank {process.rank} of {process.world}: its share of the features is extracted")
        return
    good = show(scored, published(cfg.published))
    print(f"{'wrote' if scored.new else 'scored already, see'} {scored.path}")
    if not good:
        sys.exit("error: a score is outside the tolerance of the published one")


def show(scored: "Scored", published: "Published | None") -> bool:
    """Print the table; whether all values are within the tolerances of the published ones, where there are any."""
    facts = scored.record
    print(f"samples    {facts['samples']}\nreference  {facts['reference']}\nextractor  {facts['extractor']}\n")
    heads = ["value", "published", "difference"] if published is not None else ["value"]
    print(f"{'metric':<18}" + "".join(f"{head:>14}" for head in heads))
    good = True
    for label, (name, value) in zip(facts["metrics"], scored.values.items(), strict=True):
        line = f"{label:<18}{value:>14.7g}"
        if published is not None and name in published.values:
            line += f"{published.values[name]:>14.7g}{value - published.values[name]:>+14.4g}"
            within = published.within(name, value)
            if within is not None:
                good &= within
                line += f"   {'within' if within else 'OUTSIDE'} {(published.tolerance or {})[name]:g}"
        print(line)
    for name, reason in facts["unavailable"].items():
        print(f"{name:<18}{'-':>14}  {reason}")
    if published is not None:
        print(f"published: {published.source}, {published.num_samples} samples")
    for warning in facts["warnings"]:
        print(f"warning: {warning}")
    return good


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "evaluate", EvaluateConfig)


if __name__ == "__main__":
    command()
