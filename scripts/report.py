"""Tables (Markdown, LaTeX, CSV), plots and one self-contained page of the scored runs: python scripts/report.py"""

from dataclasses import dataclass

from omegaconf import MISSING, DictConfig

from scripts.common import run


@dataclass
class ReportConfig:
    """The keys of configs/report.yaml and their types; the values are there."""

    results: str = MISSING
    tables: list[str] | None = None
    num_samples: int | None = None
    out: str = MISSING


def main(cfg: DictConfig) -> None:
    """Write everything into `out`."""
    from evaluations.study.report import write_report  # here, so that --help need not wait for it

    report = write_report(cfg.results, cfg.out, cfg.tables, cfg.num_samples)
    print(f"wrote {cfg.out}/report.html, {', '.join(file.name for file in report.files[:3])} and a plot of each table")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "report", ReportConfig)


if __name__ == "__main__":
    command()
