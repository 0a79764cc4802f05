"""One fit, from its start or its last good checkpoint to its result: the only way in which anything is trained."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from rich.console import Console

from distill.data.base import DataError
from distill.data.loader import TrainLoader
from distill.files import write_atomic
from distill.machine import divide_threads
from distill.models.network import check_fits
from distill.models.reused_head import reused
from distill.models.student import Student
from distill.training.callbacks import BEST, Checkpointing, MetricsReader, Validation
from distill.training.checkpoints import CheckpointError, VerifiedCheckpointIO, newest_good
from distill.training.evaluate import Predictions
from distill.training.module import Distillation
from distill.training.placement import choose_placement
from distill.training.progress import FitProgress
from distill.training.run_log import RunLog
from distill.training.settings import TrainingSettings
from distill.training.signals import Interrupted, StopSignal
from distill.training.test_curve import TestCurve
from distill.training.timer import SPANS

RESULT = "result.ckpt"
SUMMARY = "fit.json"


@dataclass
class FitSummary:
    """Summary of a finished fit; kept as ``fit.json``, whose presence means that it is finished."""

    epochs: int
    steps: int
    seconds: float
    """Of steps, without validation and saving."""
    images_per_second: float
    time_fractions: dict[str, float]
    """Part of the step's time by span: data, augment, teacher, student."""
    spikes: int
    best_epoch: int
    """Counted from 0; -1 where nothing could be validated."""
    scores: dict[str, float] = field(default_factory=dict)
    tested_epochs: list[int] = field(default_factory=list)
    """Counted from 0: those that ``training.test_every`` had tested, rising."""
    test_accuracies: list[float] = field(default_factory=list)
    """Of these epochs."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id → reason of the images that training had to skip."""

    @property
    def best_on_test(self) -> tuple[int, float] | None:
        """Epoch, counted from 0, and accuracy, the first of equals; None where nothing was tested."""
        tested = zip(self.tested_epochs, self.test_accuracies, strict=True)
        return max(tested, key=lambda pair: pair[1], default=None)


def fit(
    module: Distillation,
    loader: TrainLoader,
    validate: Callable[[], Predictions] | None,
    teacher: Callable[[], Predictions] | None,
    folder: Path,
    name: str,
    stop: StopSignal,
    console: Console | None,
    test: Callable[[], Predictions] | None = None,
) -> FitSummary:
    """Train ``module.step.student`` and leave the result in it, and in ``folder``.

    A fit that ``folder`` holds finished is loaded; an unfinished one goes on from its newest good checkpoint.

    Args:
        validate: predictions on the validation split; None validates nothing.
        teacher: the teacher's predictions on the same split, for the agreement.
        test: predictions on the test split, for the record that ``training.test_every`` asks for.

    Raises:
        Interrupted: a signal arrived; the checkpoint is saved.
        NonFiniteLossError: the loss or gradient became NaN; earlier checkpoints are the last good state.
        CheckpointError: nothing usable to resume from, or nowhere to save to.
    """
    if (folder / SUMMARY).is_file():
        load_result(module.step.student, folder)
        return load_summary(folder)

    settings = module.step.settings
    if settings.devices > 1 and (threads := divide_threads(settings.devices)) is not None:
        torch.set_num_threads(threads)
    choose_placement(module.step.augment, loader, folder, device_for(settings), console, module.step.cache)
    message = loader.reader.prepare()
    if message and console is not None:
        console.print(message, highlight=False, soft_wrap=True)
    checkpoint = newest_good(folder)
    resumed_at = int(checkpoint.stem.removeprefix("step-")) if checkpoint else None
    progress = FitProgress(name, console)
    metrics = MetricsReader(loader, progress, settings.log_every)
    callbacks = [metrics]
    validation = None
    if validate is not None:
        patience = settings.early_stop.patience if settings.early_stop else None
        best = folder / BEST if settings.keep == "best" else None
        validation = Validation(validate, teacher, metrics, settings.validate_every, patience, best)
        callbacks.append(validation)  # type: ignore[arg-type]
    curve = None
    if test is not None and settings.test_every is not None:
        curve = TestCurve(test, metrics, settings.test_every)
        callbacks.append(curve)  # type: ignore[arg-type]
    callbacks.append(Checkpointing(folder, settings.checkpoint_minutes, stop, metrics))  # type: ignore[arg-type]
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning's advice to people who write a Trainer by hand, and what it calls that torch has deprecated.
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.", category=FutureWarning)
            trainer = Trainer(
                accelerator="gpu" if settings.accelerator == "cuda" else settings.accelerator,
                devices=settings.devices,
                strategy=_strategy(settings, module.step.student),
                precision="bf16-mixed" if settings.precision == "bfloat16" else "32-true",
                max_epochs=settings.epochs,
                logger=RunLog(folder, resumed_at),
                callbacks=callbacks,  # type: ignore[arg-type]
                plugins=[VerifiedCheckpointIO()],
                default_root_dir=str(folder),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
            )
            trainer.fit(module, train_dataloaders=loader, ckpt_path=str(checkpoint) if checkpoint else None)
    except DataError as error:
        if stop.received is None:
            raise
        raise Interrupted(stop.received) from error  # it ended the loader's workers too
    finally:
        progress.close()
        loader.close()

    trainer.strategy.barrier()
    if settings.keep == "best" and (folder / BEST).is_file():
        load_result(module.step.student, folder, BEST)
    elif module.average is not None:
        module.average.apply()
    summary = _summary(trainer, metrics, validation, curve, module, loader.unreadable)
    if trainer.is_global_zero:
        save_result(module.step.student, folder)
        write_atomic(folder / SUMMARY, json.dumps(asdict(summary), indent=2).encode())
    trainer.strategy.barrier()
    return summary


def save_result(student: Student, folder: Path) -> None:
    """Keep a trained student's weights as the folder's result."""
    head = reused(student.model)
    content = {
        "student": student.own_state(),
        "classes": student.shapes.classes,
        "head": None if head is None else head.model_dump(),
    }
    VerifiedCheckpointIO().save_checkpoint(content, folder / RESULT)


def load_summary(folder: Path) -> FitSummary:
    """Summary of the finished fit in a folder. Raises ``CheckpointError`` if it cannot be read."""
    try:
        return FitSummary(**json.loads((folder / SUMMARY).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / SUMMARY} cannot be read: {error}") from error


def load_result(student: Student, folder: Path, file: str = RESULT) -> None:
    """Load a finished fit's weights into the student. Raises ``CheckpointError`` or ``NetworkError``."""
    own = VerifiedCheckpointIO().load_checkpoint(folder / file)["student"]
    check_fits(student.own_state(), own, str(folder / file))
    student.load_state_dict(own, strict=False)


def device_for(settings: TrainingSettings) -> torch.device:
    """Where evaluation outside a fit runs: the same kind of device as the fit."""
    use_cuda = settings.accelerator == "cuda" or (settings.accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def _strategy(settings: TrainingSettings, student: Student) -> str | Strategy:
    if settings.devices == 1:
        return "auto"
    # Static: every step uses the same parameters, but not always all of them (no term may read the head's logits).
    moving = student.full or reused(student.model) is not None  # batch-norm statistics that must agree
    return DDPStrategy(broadcast_buffers=moving, gradient_as_bucket_view=True, static_graph=True)


def _summary(
    trainer: Trainer,
    metrics: MetricsReader,
    validation: Validation | None,
    curve: TestCurve | None,
    module: Distillation,
    unreadable: dict[str, str],
) -> FitSummary:
    wall = max(metrics.totals.get("wall", 0.0), 1e-9)
    return FitSummary(
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=wall,
        images_per_second=metrics.totals.get("images", 0.0) / wall,
        time_fractions={span: metrics.totals.get(span, 0.0) / wall for span in SPANS},
        spikes=int(module.guard.spikes),
        best_epoch=validation.best_epoch if validation else -1,
        scores=validation.scores if validation else {},
        tested_epochs=list(curve.accuracies) if curve else [],
        test_accuracies=list(curve.accuracies.values()) if curve else [],
        unreadable=dict(unreadable),
    )
