"""Loggers of a fit beside ``log.csv``: TensorBoard, Weights & Biases, MLflow, or any logger class of Lightning."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from augment.base import UserError
from augment.base.plugins import import_class
from distill.training.settings import LoggerSettings

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""Type → the package that it needs, which is also the name of the extra that installs it."""


class LoggerError(UserError, ValueError):
    """A logger cannot be used; the text names its key and what would work."""


def check_loggers(loggers: Sequence[LoggerSettings]) -> None:
    """Raise ``LoggerError`` if a logger's package is not installed, or its class is none of Lightning's loggers."""
    for number, settings in enumerate(loggers):
        where = f"training.loggers.{number}"
        package = PACKAGES.get(settings.type)
        if package is not None and find_spec(package) is None:
            raise LoggerError(
                f"{where}: {settings.type} is not installed; install it with: pip install 'delta-distill[{package}]'"
            )
        if ":" in settings.type:
            _own_class(settings, where)


def make_loggers(loggers: Sequence[LoggerSettings], folder: Path) -> list[Logger]:
    """The loggers beside ``log.csv`` and TensorBoard, which :class:`distill.training.run_log.RunLog` writes.

    All files are written under ``folder``. A resumed fit continues its run of Weights & Biases or MLflow, see
    :mod:`distill.training.step_keyed`. Loggers of other classes get the rows of repeated steps again.

    Args:
        loggers: of the training.
        folder: of the fit.

    Returns:
        One Lightning logger for each setting of another type than csv and tensorboard.

    Raises:
        LoggerError: see :func:`check_loggers`.
    """
    check_loggers(loggers)
    made: list[Logger] = []
    for number, settings in enumerate(loggers):
        if settings.type == "wandb":
            made.append(_wandb(settings, folder))
        elif settings.type == "mlflow":
            made.append(_mlflow(settings, folder))
        elif ":" in settings.type:
            where = f"training.loggers.{number}"
            try:
                made.append(_own_class(settings, where)(**{"save_dir": str(folder), **settings.arguments}))
            except TypeError as error:
                raise LoggerError(f"{where}.arguments: {error}") from error
    return made


def _own_class(settings: LoggerSettings, where: str) -> type[Any]:
    try:
        return import_class(settings.type, Logger)
    except UserError as error:
        raise LoggerError(f"{where}.type: {error}") from error


def _wandb(settings: LoggerSettings, folder: Path) -> Logger:
    from distill.training.step_keyed import StepKeyedWandb

    inside = folder / "wandb"
    inside.mkdir(parents=True, exist_ok=True)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(name, str(inside / "own"))
    os.environ.setdefault("WANDB_SILENT", "true")
    own = {"project": settings.project or folder.parent.name, "name": f"{folder.parent.name}/{folder.name}"}
    again = {"id": hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16], "resume": "allow"}
    return StepKeyedWandb(
        **{**own, **again, "save_dir": str(folder), "offline": settings.offline, **settings.arguments}
    )


def _mlflow(settings: LoggerSettings, folder: Path) -> Logger:
    from distill.training.step_keyed import StepKeyedMLFlow

    here = folder.resolve()
    remembered = folder / "mlflow-run"
    local = {
        "tracking_uri": f"sqlite:///{here / 'mlflow.db'}",
        "artifact_location": (here / "mlflow").as_uri(),
    }
    logger = StepKeyedMLFlow(
        **{
            "experiment_name": settings.project or folder.parent.name,
            "run_name": f"{folder.parent.name}/{folder.name}",
            "run_id": remembered.read_text() if remembered.is_file() else None,
            **(local if settings.offline else {}),
            **settings.arguments,
        }
    )
    if run_id := logger.run_id:
        remembered.write_text(run_id)
    return logger
