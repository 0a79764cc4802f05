"""The log of a fit: a CSV in long format (``step,epoch,name,value``) and TensorBoard event files."""

from __future__ import annotations

import csv
import logging
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from distill.files import write_atomic

logger = logging.getLogger(__name__)

COLUMNS = ("step", "epoch", "name", "value")

EVENT_FILE = "events.out.tfevents."


class RunLog(Logger):
    """Appends rows to ``log.csv``, writes TensorBoard event files beside it, and passes all metrics to other loggers.

    In long format, a metric that first appears later needs no new header, and a resumed fit appends to the same file.
    If a log cannot be written (a full disk, no network), there is one warning and training continues.

    Args:
        folder: for both.
        resumed_at: step of the checkpoint that the fit resumes from; rows of later steps are removed. None: a new log.
        tensorboard: whether to write TensorBoard event files.
        others: loggers that get the same metrics; nothing is removed from their logs, see
            :mod:`distill.training.step_keyed`.
    """

    def __init__(
        self, folder: Path, resumed_at: int | None = None, tensorboard: bool = True, others: Sequence[Logger] = ()
    ):
        super().__init__()
        self.tensorboard, self.others = tensorboard, list(others)
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
        """Pass the settings to the other loggers; for this one they are in the run's ``config.yaml``.

        Args:
            params: name → value.
            args: passed on.
            kwargs: passed on.
        """
        self._pass_on("log_hyperparams", params, *args, **kwargs)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row for each metric; ``metrics`` may hold the ``epoch``, which is not a metric of its own."""
        self._pass_on("log_metrics", dict(metrics), step)
        epoch = metrics.pop("epoch", 0)
        self._attempt(self._append, metrics, int(step or 0), int(epoch))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._attempt(self._writer.close)
        self._pass_on("finalize", status)

    def _pass_on(self, method: str, *arguments: Any, **more: Any) -> None:
        for other in list(self.others):
            try:
                getattr(other, method)(*arguments, **more)
            except Exception as error:
                self.others.remove(other)
                name = type(other).__name__
                logger.warning("%s does not log any more (%s); training continues without it", name, error)

    @rank_zero_only
    def _attempt(self, action: Any, *arguments: Any) -> None:
        if self._broken:
            return
        try:
            action(*arguments)
        except OSError as error:
            self._broken = True
            logger.warning("%s: the log cannot be written (%s); training continues without it", self.path, error)

    def _open(self, resumed_at: int | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows: list[list[str]] = []
        if resumed_at is not None and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and row[0].isdigit()]
        kept = [COLUMNS, *(row for row in rows if int(row[0]) <= (resumed_at or 0))]
        write_atomic(self.path, "".join(",".join(row) + "\n" for row in kept).encode())

        if not self.tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_a_later_second(self.folder)
        self._writer = SummaryWriter(str(self.folder), purge_step=None if resumed_at is None else resumed_at + 1)

    def _append(self, metrics: dict[str, float], step: int, epoch: int) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([step, epoch, name, f"{value:.7g}"] for name, value in metrics.items())
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def _wait_for_a_later_second(folder: Path) -> None:
    """Wait, for a second at most, until a new event file's name sorts after those in ``folder``.

    TensorBoard reads event files in the order of their names: the second, the host, the process and a count, of which
    the last two sort as text (9 after 10). A fit resumed within the second in which the former one began would
    otherwise be read before it.
    """
    names = [path.name.removeprefix(EVENT_FILE) for path in folder.glob(f"{EVENT_FILE}*")]
    latest = max((name.split(".")[0] for name in names), default="")
    now = time.time()
    if latest == f"{int(now):010d}":
        time.sleep(int(now) + 1 - now)
