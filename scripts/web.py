"""A page in the browser that compares SAG off and on, from the same noise: python scripts/web.py model=..."""

from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig

from sag.build import SampleConfig
from scripts.common import run


@dataclass
class WebConfig(SampleConfig):
    """The keys of configs/web.yaml and their types; the values are there."""

    host: str = MISSING
    port: int = MISSING
    browser: bool = MISSING
    moments: int = MISSING
    classes: list[str] | None = None


OWN = WebConfig.__annotations__.keys()  # those that SampleConfig does not have


def main(cfg: DictConfig) -> None:
    """Serve the page until Ctrl+C."""
    try:  # here, as importing Gradio and torch takes seconds, which --help does without
        from evaluations.web.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the page needs Gradio: pip install 'sag[demo]'") from error
    from evaluations.web.comparison import SideBySide

    overrides, config_dir = given()
    pair = SideBySide(overrides, config_dir, cfg.moments)
    page = serve(pair, cfg.classes, cfg.host, cfg.port, browser=cfg.browser)
    print(f"page      {page.local_url} (Ctrl+C ends it)", flush=True)
    page.block_thread()


def given() -> tuple[list[str], str | None]:
    """Return the overrides of the command line that scripts/sample.py has too, and the folder of --config-dir."""
    hydra = HydraConfig.get()
    overrides = [override for override in hydra.overrides.task if override.partition("=")[0].lstrip("+") not in OWN]
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return overrides, folders[0] if folders else None


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "web", WebConfig)


if __name__ == "__main__":
    command()
