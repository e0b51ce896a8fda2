"""Tables (Markdown, LaTeX, CSV), plots and one self-contained page of the scored runs: python scripts/report.py"""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from scripts.common import run


@dataclass
class ReportConfig:
    """The keys of configs/report.yaml and their types; the values are there."""

    results: str = MISSING
    tables: list[str] | None = None
    num_samples: int | None = None
    out: str = MISSING


ConfigStore.instance().store("report_schema", ReportConfig)


def main(cfg: DictConfig) -> None:
    """Write everything into `out`."""
    from evaluations.study.report import write_report  # here, so that --help need not wait for it

    report = write_report(cfg.results, cfg.out, cfg.tables, cfg.num_samples)
    print(f"wrote {cfg.out}/report.html, {', '.join(file.name for file in report.files[:3])} and a plot of each table")


if __name__ == "__main__":
    run(main, "report", ReportConfig)
