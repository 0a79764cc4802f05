"""Callbacks around the training step: read metrics, validate, save checkpoints, stop on signals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from distill.data.base import DataError
from distill.data.loader import TrainLoader
from distill.training.checkpoints import VerifiedCheckpointIO, checkpoint_path, prune
from distill.training.evaluate import Predictions
from distill.training.module import Distillation
from distill.training.progress import FitProgress
from distill.training.signals import Interrupted, StopSignal

logger = logging.getLogger(__name__)

BEST = "best.ckpt"


class MetricsReader(Callback):
    """Reads the step's metrics every few steps and passes them to the log and the progress display.

    Args:
        loader: of the fit, for the seconds spent waiting for data.
        progress: the display.
        every: steps between readings.
    """

    def __init__(self, loader: TrainLoader, progress: FitProgress, every: int):
        self.loader = loader
        self.progress = progress
        self.every = every
        self.totals: dict[str, float] = {}
        self._since = time.perf_counter()
        self._images = 0
        self._spikes = 0

    def on_train_start(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        self._since = time.perf_counter()
        self._spikes = int(module.guard.spikes)
        self.loader.read_wait_seconds()
        if module.note:
            self.progress.note(f"{self.progress.name}: {module.note}")
        if parts := module.compiled_parts:
            self.progress.note(f"{self.progress.name}: the first step compiles {', '.join(parts)}: it can take minutes")
        self.progress.start(trainer.max_epochs or 0, module.step.steps_per_epoch, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, module: Distillation, outputs: Any, batch: Any, index: int) -> None:  # type: ignore[override]
        """End the step: stop its clock, update the average of the weights, and read the metrics if they are due.

        Args:
            trainer: Lightning's.
            module: that is trained.
            outputs: not used.
            batch: of this step, for the number of images.
            index: of the batch in the epoch, counted from 0.
        """
        module.step.clock.stop("student")
        self._images += len(batch.images) * trainer.world_size
        if module.mid_update:
            return
        if module.average is not None:
            module.average.update()
        # Reading the flag is free on a CPU. A GPU has to be synchronized for it, so there ``read`` does it.
        if module.device.type == "cpu":
            module.guard.check()
        if (
            module.step.settings.updates(index + 1) % self.every == 0
        ):  # counted from the epoch's start, since its end is read too
            self.read(trainer, module)
        else:
            self.progress.step(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        self.read(trainer, module)

    def read(self, trainer: Trainer, module: Distillation) -> None:
        """Read, check, log and show the metrics since the last reading."""
        module.guard.check()
        metrics = module.read_metrics()
        if not metrics:
            return
        module.step.clock.add("data", self.loader.read_wait_seconds())
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        spans = module.step.clock.read()
        for span, seconds in {**spans, "wall": elapsed, "images": float(self._images)}.items():
            self.totals[span] = self.totals.get(span, 0.0) + seconds
        metrics["images_per_second"] = self._images / elapsed
        metrics |= {f"share/{span}": seconds / elapsed for span, seconds in spans.items()}
        group = trainer.optimizers[0].param_groups[0]
        metrics["lr"] = group["lr"] / group["lr_scale"]
        metrics["spikes"] = spikes = int(module.guard.spikes)
        if spikes > self._spikes:
            done = "skipped" if module.step.settings.spike.action == "skip" else "made"
            logger.warning("%d loss spike(s) by step %d; their updates were %s", spikes, trainer.global_step, done)
        self._spikes = spikes
        self._images = 0
        self.progress.metrics(trainer.global_step, metrics)
        if trainer.logger is not None:
            trainer.logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals = state["totals"]

    def shift(self, seconds: float) -> None:
        """Exclude seconds that were not spent on steps (validation, saving) from the speed."""
        self._since += seconds


class EpochLines(Callback):
    """Prints the last metrics after every ``every`` epochs and the last one, of a fit without validation."""

    def __init__(self, progress: FitProgress, every: int):
        self.progress = progress
        self.every = every

    def on_train_epoch_end(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        epoch = trainer.current_epoch
        if (epoch + 1) % self.every == 0 or epoch + 1 == trainer.max_epochs:
            self.progress.epoch_end(epoch, {})


class Validation(Callback):
    """Validates after every ``every`` epochs: accuracy where there are labels, else agreement with the teacher.

    Args:
        validate: makes the current student's predictions for the validation split.
        teacher: makes the teacher's predictions for the same samples, called once; None without a teacher.
        metrics: reads the metrics; validation time is excluded from its speed.
        every: epochs between validations; the last epoch is always validated.
        patience: number of validations without a better score after which training stops; None: never.
        best: file for the weights of the best epoch; None keeps none.
    """

    def __init__(
        self,
        validate: Callable[[], Predictions],
        teacher: Callable[[], Predictions] | None,
        metrics: MetricsReader,
        every: int,
        patience: int | None,
        best: Path | None,
    ):
        self.validate = validate
        self.teacher = teacher
        self.metrics = metrics
        self.every = every
        self.patience = patience
        self.best = best
        self.best_score = float("-inf")
        self.best_epoch = -1
        self.scores: dict[str, float] = {}
        self.stale = False
        self._of_teacher: Predictions | None = None

    def on_train_epoch_end(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs
        if (epoch + 1) % self.every and not last:
            return
        begun = time.perf_counter()
        with module.as_result():
            self.scores = self._score(self.validate())
            score = next(iter(self.scores.values()), None)
            if score is not None and score > self.best_score:
                self.best_score, self.best_epoch = score, epoch
                if self.best is not None and trainer.is_global_zero:
                    VerifiedCheckpointIO().save_checkpoint({"student": module.step.student.own_state()}, self.best)
        self.stale = self.patience is not None and epoch - self.best_epoch >= self.patience * self.every
        trainer.should_stop = self.stale
        module.train()
        if trainer.logger is not None:
            trainer.logger.log_metrics({**self.scores, "epoch": epoch}, trainer.global_step)
        self.metrics.progress.epoch_end(epoch, self.scores)
        self.metrics.shift(time.perf_counter() - begun)

    def _score(self, student: Predictions) -> dict[str, float]:
        scores = {}
        accuracy = student.accuracy()
        if accuracy is not None:
            scores["val/accuracy"] = accuracy
        if self.teacher is not None:
            if self._of_teacher is None:
                self._of_teacher = self.teacher()
            scores["val/agreement"] = student.agreement(self._of_teacher)
        return scores

    def on_train_start(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        trainer.should_stop = self.stale  # a resumed fit that had stopped early but has no result yet

    def state_dict(self) -> dict[str, Any]:
        names = ("best_score", "best_epoch", "scores", "stale")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Checkpointing(Callback):
    """Saves a checkpoint at the end of each epoch, every few minutes within one, and when a signal arrives.

    It saves after an update. Where a signal ended the loader, accumulated gradients are saved too (one process).

    Args:
        folder: for the checkpoints.
        minutes: between two checkpoints within an epoch.
        stop: remembers the signal.
        metrics: read before each checkpoint; saving time is excluded from its speed.
    """

    def __init__(self, folder: Path, minutes: float, stop: StopSignal, metrics: MetricsReader):
        self.folder = folder
        self.seconds = 60 * minutes
        self.stop = stop
        self.metrics = metrics
        self._saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        # After Lightning has put its handlers in. On SIGTERM they exchange a tensor in the middle of whatever the ranks
        # exchange at that moment, and each rank then waits for the other.
        self.stop.install()

    def on_train_batch_end(self, trainer: Trainer, module: Distillation, outputs: Any, batch: Any, index: int) -> None:  # type: ignore[override]
        """Save a checkpoint if one is due or a signal has arrived; raise ``Interrupted`` after a signal.

        Args:
            trainer: Lightning's.
            module: that is trained.
            outputs: not used.
            batch: not used.
            index: not used.
        """
        # A run resumed after the last batch of an epoch would not validate it: on_train_epoch_end saves instead.
        # Between the batches of an update, each rank has gradients of its own, which no checkpoint would hold.
        if trainer.is_last_batch or module.mid_update:
            return
        number = self.stop.agreed()
        # Saving is collective and the clocks of ranks differ, so only a run of one process saves by time.
        due = trainer.world_size == 1 and time.monotonic() - self._saved > self.seconds
        if number is not None or due:
            self.save(trainer, module)
        if number is not None:
            raise Interrupted(number)

    def on_train_epoch_end(self, trainer: Trainer, module: Distillation) -> None:  # type: ignore[override]
        self.save(trainer, module)
        number = self.stop.agreed()
        if number is not None:
            raise Interrupted(number)

    def on_exception(self, trainer: Trainer, module: Distillation, error: BaseException) -> None:  # type: ignore[override]
        """Save a checkpoint if a signal ended the loader's workers.

        Args:
            trainer: Lightning's.
            module: that is trained.
            error: that the fit raised.
        """
        # A signal to the process group also ends the loader's workers, which raises DataError between two steps.
        if self.stop.received is not None and isinstance(error, DataError) and trainer.world_size == 1:
            self.save(trainer, module)

    def save(self, trainer: Trainer, module: Distillation) -> None:
        """Save a checkpoint of the current step, and remove old ones."""
        # ``read`` raises after a NaN: a checkpoint saved then would be resumed in that state.
        self.metrics.read(trainer, module)
        begun = time.perf_counter()
        trainer.save_checkpoint(checkpoint_path(self.folder, trainer.global_step))
        if trainer.is_global_zero:
            prune(self.folder)
        self._saved = time.monotonic()
        self.metrics.shift(time.perf_counter() - begun)
