"""The training loop of detectors, with checkpoints and exact resume.

The fit of students (:mod:`distill.training.fit`) compares two networks' outputs on batches of one size. A detector has
a loss of its own and images of all sizes with a target for each, so its loop is this small one. Order, augmentation
and torchvision's random choices are keyed by seed, epoch and step, so a resumed fit is equal bit for bit to one that
was never stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from distill.deltas.state import load_exactly
from distill.detection.detector import BuiltDetector
from distill.detection.images import TrainBatches
from distill.files import write_atomic
from distill.training.checkpoints import CheckpointError, VerifiedCheckpointIO, checkpoint_path, newest_good, prune
from distill.training.fit import RESULT, SUMMARY
from distill.training.guard import NonFiniteLossError
from distill.training.loggers import make_loggers
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.progress import FitProgress
from distill.training.run_log import RunLog
from distill.training.settings import TrainingSettings
from distill.training.signals import StopSignal


@dataclass
class DetectorFit:
    """Summary of a finished fit, saved as ``fit.json``."""

    epochs: int
    steps: int
    seconds: float
    """Wall time of the steps, without validation and saving."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""


@dataclass(frozen=True)
class FitOf:
    """What a fit is made of, beside the detector.

    Args:
        batches: of training.
        training: epochs, optimizer, schedule, clipping.
        device: to train on.
        validate: the scores of the detector as it is; None: no validation.
    """

    batches: TrainBatches
    training: TrainingSettings
    device: torch.device
    validate: Callable[[], dict[str, float]] | None = None


def fit_detector(
    detector: BuiltDetector, own: FitOf, folder: Path, name: str, stop: StopSignal, console: Console | None
) -> DetectorFit:
    """Train a detector in place, from its start or its newest good checkpoint to its result.

    Args:
        detector: before training.
        own: data and settings.
        folder: for checkpoints, log, result and summary.
        name: of the stage, for console and errors.
        stop: remembers a signal that asks the run to stop.
        console: where to print; None prints nothing.

    Returns:
        Summary of the finished fit.

    Raises:
        Interrupted: a signal arrived; a checkpoint is saved.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint was saved before that.
    """
    if (folder / SUMMARY).is_file():
        return load_fit(detector, folder)
    settings, module = own.training, detector.module.to(own.device)
    optimizer = build_optimizer(module, detector.parts(), settings.optimizer, detector.student.model)
    schedule = build_schedule(optimizer, settings.schedule, settings.epochs, len(own.batches))
    step, totals, scores = 0, {"seconds": 0.0}, {}
    checkpoint = newest_good(folder)
    if checkpoint is not None:
        content = VerifiedCheckpointIO().load_checkpoint(checkpoint)
        step, totals = content["step"], dict(content["totals"])
        scores = dict(content["scores"])
        load_exactly(detector.own_state(), content["detector"], "checkpoint")
        optimizer.load_state_dict(content["optimizer"])
        schedule.load_state_dict(content["schedule"])

    def save() -> None:
        content = {
            "step": step,
            "totals": totals,
            "scores": scores,
            "detector": {key: tensor.cpu() for key, tensor in detector.own_state().items()},
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        VerifiedCheckpointIO().save_checkpoint(content, checkpoint_path(folder, step))
        prune(folder)

    log = FitLog(folder, step if checkpoint else None, settings, name, console)
    log.progress.start(settings.epochs, len(own.batches), step)
    saved = time.monotonic()
    try:
        while step < settings.epochs * len(own.batches):
            epoch, first = divmod(step, len(own.batches))
            module.train()
            log.begin()
            for batch in own.batches.of(epoch, first):
                log.add(_step(detector, own, batch, step, optimizer, name), len(batch))
                schedule.step()
                step += 1
                last = step % len(own.batches) == 0
                log.write(step, epoch, optimizer, totals, last or step % settings.log_every == 0)
                due = time.monotonic() - saved > 60 * settings.checkpoint_minutes
                if not last and (due or stop.received is not None):
                    log.write(step, epoch, optimizer, totals, True)
                    save()
                    saved = time.monotonic()
                    stop.raise_if_received()
                    log.begin()
            if own.validate is not None and (
                (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs
            ):
                scores = own.validate()
                log.run_log.log_metrics({**scores, "epoch": epoch}, step)
            log.progress.epoch_end(epoch, scores)
            save()
            saved = time.monotonic()
            stop.raise_if_received()
    finally:
        log.close()
    state = {key: tensor.cpu() for key, tensor in detector.own_state().items()}
    VerifiedCheckpointIO().save_checkpoint({"detector": state}, folder / RESULT)
    fit = DetectorFit(settings.epochs, step, totals["seconds"], scores)
    write_atomic(folder / SUMMARY, json.dumps(asdict(fit), indent=2).encode())
    return fit


def load_fit(detector: BuiltDetector, folder: Path) -> DetectorFit:
    """Load the weights of a finished fit into a detector, and its summary."""
    content = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)
    load_exactly(detector.own_state(), content["detector"], f"result {folder / RESULT}")
    try:
        return DetectorFit(**json.loads((folder / SUMMARY).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / SUMMARY} cannot be read: {error}") from error


def _step(
    detector: BuiltDetector, own: FitOf, batch: Any, step: int, optimizer: torch.optim.Optimizer, name: str
) -> dict[str, float]:
    """One update; returns the loss terms."""
    device = [own.device] if own.device.type == "cuda" else []
    with torch.random.fork_rng(devices=device):
        torch.manual_seed(
            own.batches.seed * 1_000_003 + step
        )  # torchvision draws which proposals and anchors it learns from
        terms = detector.losses(batch, own.device)
    loss: Tensor = torch.stack(list(terms.values())).sum()
    if not torch.isfinite(loss):
        bad = ", ".join(key for key, value in terms.items() if not torch.isfinite(value))
        raise NonFiniteLossError(
            f"{name}: step {step + 1}: {bad} became NaN or infinite, and the weights are those of the step before; a"
            " common cause is a learning rate too high"
        )
    optimizer.zero_grad()
    loss.backward()
    if own.training.clip_norm is not None:
        parameters = [p for p in detector.module.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, own.training.clip_norm)
    optimizer.step()
    detector.student.after_step(step + 1, own.training.epochs * len(own.batches))
    named = {f"loss/{key.removeprefix('loss_')}": float(value.detach()) for key, value in terms.items()}
    return {"loss": float(loss.detach()), **named}


class FitLog:
    """Log and progress of a fit: means of the loss terms since the last row.

    Args:
        folder: for ``log.csv`` and the files of loggers.
        resumed_at: step of the checkpoint that the fit goes on from; None: a new log.
        settings: which loggers.
        name: of the stage.
        console: where to show the progress.
    """

    def __init__(
        self, folder: Path, resumed_at: int | None, settings: TrainingSettings, name: str, console: Console | None
    ):
        tensorboard = any(logger.type == "tensorboard" for logger in settings.loggers)
        self.run_log = RunLog(folder, resumed_at, tensorboard, make_loggers(settings.loggers, folder))
        self.progress = FitProgress(name, console)
        self.begin()

    def begin(self) -> None:
        """Start the clock and the sums of the next row."""
        self._sums: dict[str, float] = {}
        self._steps, self._images, self._since = 0, 0, time.perf_counter()

    def add(self, terms: dict[str, float], images: int) -> None:
        """Add the loss terms of a step on so many images."""
        self._steps, self._images = self._steps + 1, self._images + images
        for key, value in terms.items():
            self._sums[key] = self._sums.get(key, 0.0) + value

    def write(
        self, step: int, epoch: int, optimizer: torch.optim.Optimizer, totals: dict[str, float], due: bool
    ) -> None:
        """Write and show a row of the means if it is due, else move the bar.

        Args:
            step: that is done, counted from 1.
            epoch: counted from 0.
            optimizer: for the learning rate.
            totals: the seconds of the row are added to its ``seconds``.
            due: whether to write.
        """
        if not due or not self._steps:
            self.progress.step(step)
            return
        seconds = time.perf_counter() - self._since
        totals["seconds"] += seconds
        metrics = {key: value / self._steps for key, value in self._sums.items()}
        group = optimizer.param_groups[0]
        metrics |= {"images_per_second": self._images / seconds, "lr": group["lr"] / group["lr_scale"]}
        self.run_log.log_metrics({**metrics, "epoch": epoch}, step)
        self.progress.metrics(step, metrics)
        self.begin()

    def close(self) -> None:
        self.progress.close()
        self.run_log.finalize("finished")
