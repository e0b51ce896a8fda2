"""The command line of all programs: arguments in, one sentence for every error, notes and warnings on the screen."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from sag.build.arguments import read_arguments
from sag.build.composing import check_keys, register, settle_config
from sag.build.groups import CONFIGS
from sag.build.messages import check_choices, explain, sentence, user_errors
from sag.distributed import Process
from sag.memory import keep_memory

Main = Callable[[DictConfig], float | None]


def run(main: Main, config_name: str, schema: type, failed: Callable[[DictConfig, str], float] | None = None) -> None:
    """Compose a config with the command line and call a program with it; an error becomes one sentence and exit code 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown.

    Args:
        main: The program.
        config_name: The name of a file in configs/.
        schema: A dataclass of the keys that the program knows.
        failed: What a sweep does with a point whose values are refused, and why; None ends the program.
    """
    register(config_name, schema)
    keep_memory()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without the line of code
    logging.getLogger("hydra.utils").disabled = True  # what it logs is raised too
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them

    def settled(cfg: DictConfig) -> float | None:
        show_logs()
        check_keys(cfg, config_name, HydraConfig.get())
        try:
            settle_config(cfg, config_name, HydraConfig.get())
        except user_errors() as error:
            if failed is None:
                raise
            return failed(cfg, sentence(error))
        return main(cfg)

    @functools.wraps(main)
    def job(cfg: DictConfig) -> float | None:
        return _report(lambda: settled(cfg), full)

    def start() -> float | None:
        sys.argv[1:] = overrides = read_arguments(sys.argv[1:], schema)
        check_choices(overrides)
        try:
            result: float | None = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            return result
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(error, config_name, schema, overrides)) from error

    _report(start, full)


class _Screen(logging.Handler):
    """Prints what the library logs: notes by the main process only, warnings by every process."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        label = "warning" if record.levelno >= logging.WARNING else "note"
        print(f"{label:<10}{record.getMessage()}", flush=True)


_SCREEN = _Screen()


def show_logs() -> None:
    """Print what the library logs from now on."""
    for name in ("sag", "evaluations"):
        logger = logging.getLogger(name)
        logger.addHandler(_SCREEN)
        logger.setLevel(logging.INFO if Process.current().main else logging.WARNING)


def _report(call: Callable[[], float | None], full: bool) -> float | None:
    try:
        return call()
    except user_errors() as error:
        if full:
            raise
        sys.exit(f"error: {sentence(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last finished batch")
