"""Loggers of Weights & Biases and MLflow in which every step has one row, also after a killed fit was resumed.

A resumed fit repeats the steps after its checkpoint. Neither service can remove rows (wandb's rewinding is not for
everyone), so the rows of the first time are kept and the repeated ones, which are equal, are not logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class StepKeyedWandb(WandbLogger):
    """Weights & Biases with the fit's step as wandb's own: wandb drops a row of an earlier step than its last one.

    Offline, wandb does not know what an earlier start of the fit has written. So the last step of each metric is noted
    in ``wandb/logged.jsonl`` beside wandb's files. Rows that wandb had not yet written when a machine lost its power
    are noted, and missing; ``log.csv`` has them.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row; rows of one step become one.

        Args:
            metrics: name → value.
            step: of the fit.
        """
        named = {
            f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name: metrics[name] for name in metrics
        }
        if self._offline and step is not None:
            named = {name: value for name, value in named.items() if step > self._before.get(name, -1)}
            if not named:
                return
        self.experiment.log({**named, "trainer/global_step": step}, step=step)
        if self._offline and step is not None:
            self._notes.parent.mkdir(parents=True, exist_ok=True)
            with self._notes.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict.fromkeys(named, step)) + "\n")

    @property
    def _notes(self) -> Path:
        return Path(self.save_dir or ".") / "wandb" / "logged.jsonl"

    @cached_property
    def _before(self) -> dict[str, int]:
        """Metric → its last step that an earlier start of the fit has logged, without a line that was cut off."""
        last: dict[str, int] = {}
        if self._notes.is_file():
            for line in self._notes.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    last |= json.loads(line)
        return last

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, so that the next fit of this process begins one of its own."""
        super().finalize(status)
        self.experiment.finish(exit_code=int(status != "success"))


class StepKeyedMLFlow(MLFlowLogger):
    """MLflow without the rows that an earlier start of the fit has logged, which it would keep beside the new ones."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics whose last step in the run is an earlier one.

        Args:
            metrics: name → value.
            step: of the fit.
        """
        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        fresh = {name: value for name, value in metrics.items() if (step or 0) > self._before.get(prefix + name, -1)}
        super().log_metrics(fresh, step)

    @cached_property
    def _before(self) -> dict[str, int]:
        """Metric → its last step in the run when this fit began or resumed."""
        client, run_id = self.experiment, self.run_id
        names = client.get_run(run_id).data.metrics
        return {name: max(row.step for row in client.get_metric_history(run_id, name)) for name in names}
