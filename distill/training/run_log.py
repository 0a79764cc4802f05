"""The log of a fit: a long CSV (``step,epoch,name,value``) that is only ever appended to, and TensorBoard beside it."""

from __future__ import annotations

import csv
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from distill.files import write_atomic

logger = logging.getLogger(__name__)

COLUMNS = ("step", "epoch", "name", "value")


class RunLog(Logger):
    """Appends rows to ``log.csv`` and scalars to TensorBoard event files in the same folder.

    Long format, so that a metric that appears late needs no new header and a resumed run goes on in the same file. A
    log that cannot be written (a full disk) is a warning, once: training goes on.

    Args:
        folder: where both are written.
        resumed_at: rows of later steps, written by a run that was killed after its last checkpoint, are taken out.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None):
        super().__init__()
        self.folder = folder
        self.path = folder / "log.csv"
        self._writer: Any = None
        self._broken = False
        self._attempt(self._open, resumed_at)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in the run's ``config.yaml``; nothing to do."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        epoch = metrics.pop("epoch", 0)
        self._attempt(self._append, metrics, int(step or 0), int(epoch))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._attempt(self._writer.close)

    @rank_zero_only
    def _attempt(self, action: Any, *arguments: Any) -> None:
        if self._broken:
            return
        try:
            action(*arguments)
        except OSError as error:
            self._broken = True
            logger.warning("%s: the log cannot be written (%s); training goes on without it", self.path, error)

    def _open(self, resumed_at: int | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows: list[list[str]] = []
        if resumed_at is not None and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdigit()]
        kept = [COLUMNS, *(row for row in rows if int(row[0]) <= (resumed_at or 0))]
        write_atomic(self.path, "".join(",".join(row) + "\n" for row in kept).encode())

        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=None if resumed_at is None else resumed_at + 1)

    def _append(self, metrics: dict[str, float], step: int, epoch: int) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([step, epoch, name, f"{value:.7g}"] for name, value in metrics.items())
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
