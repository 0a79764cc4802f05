"""Runs one fit, from its start or its newest good checkpoint to its result. All training goes through here."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from rich.console import Console
from torch import Tensor

from augment.base.machine import divide_threads
from distill.data.base import DataError
from distill.data.loader import TrainLoader
from distill.files import write_atomic
from distill.models.reused_head import reused
from distill.models.student import Student
from distill.models.weights import check_fits
from distill.training.callbacks import BEST, Checkpointing, EpochLines, MetricsReader, Validation
from distill.training.checkpoints import CheckpointError, VerifiedCheckpointIO, newest_good
from distill.training.device import device_for
from distill.training.evaluate import Predictions
from distill.training.loggers import make_loggers
from distill.training.module import Distillation
from distill.training.placement import choose_placement
from distill.training.progress import FitProgress
from distill.training.run_log import RunLog
from distill.training.settings import TrainingSettings
from distill.training.signals import Interrupted, StopSignal
from distill.training.terms import Carried
from distill.training.test_curve import TestCurve
from distill.training.timer import SPANS

RESULT = "result.ckpt"
SUMMARY = "fit.json"


@dataclass
class FitSummary:
    """Summary of a finished fit, saved as ``fit.json``; a fit with this file is finished."""

    epochs: int
    steps: int
    seconds: float
    """Wall time of the steps, without validation and saving."""
    images_per_second: float
    time_fractions: dict[str, float]
    """Span (data, augment, teacher, student) → fraction of the wall time of the steps."""
    spikes: int
    """Number of loss spikes."""
    best_epoch: int
    """Counted from 0; -1 if no epoch was scored."""
    scores: dict[str, float] = field(default_factory=dict)
    """Name of a score → its value in the last validation."""
    tested_epochs: list[int] = field(default_factory=list)
    """Epochs, counted from 0 and ascending, that were tested because of ``training.test_every``."""
    test_accuracies: list[float] = field(default_factory=list)
    """Top-1 accuracy on the test split after each of ``tested_epochs``, in [0, 1]."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id → reason, for each training image that was skipped because it could not be read."""

    @property
    def best_on_test(self) -> tuple[int, float] | None:
        """Epoch, counted from 0, and accuracy of the best tested epoch (the first of equals); None without tests."""
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
    """Train the student of a module in place, and save the result in a folder.

    A fit that is finished in ``folder`` is loaded; an unfinished one is resumed from its newest good checkpoint.

    Args:
        module: the training step, with the student; ``module.step.settings`` configures the fit.
        loader: training batches; the fit closes it.
        validate: makes the student's predictions for the validation split; None: no validation.
        teacher: makes the teacher's predictions for the same split, for the agreement; None: no agreement.
        folder: for checkpoints, log, result and summary.
        name: of the fit, for the console.
        stop: remembers a signal that asks the run to stop.
        console: where to print; None prints nothing.
        test: makes the student's predictions for the test split, if ``training.test_every`` is set.

    Returns:
        Summary of the finished fit.

    Raises:
        Interrupted: a signal arrived; a checkpoint is saved.
        NonFiniteLossError: the loss or the gradient became NaN or infinite; the last checkpoint was saved before that.
        CheckpointError: no checkpoint is intact, or a checkpoint cannot be written.
    """
    if (folder / SUMMARY).is_file():
        load_result(module.step.student, folder)
        _load_regularizers(module, folder)
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
    types = {logger.type for logger in settings.loggers}
    log = RunLog(folder, resumed_at, "tensorboard" in types, make_loggers(settings.loggers, folder))
    log.log_hyperparams(settings.model_dump(mode="json"))
    progress = FitProgress(name, console)
    metrics = MetricsReader(loader, progress, settings.log_every)
    callbacks = [metrics]
    validation = None
    if validate is not None:
        patience = settings.early_stop.patience if settings.early_stop else None
        best = folder / BEST if settings.keep == "best" else None
        validation = Validation(validate, teacher, metrics, settings.validate_every, patience, best)
        callbacks.append(validation)  # type: ignore[arg-type]
    else:
        callbacks.append(EpochLines(progress, settings.validate_every))  # type: ignore[arg-type]
    curve = None
    if test is not None and settings.test_every is not None:
        curve = TestCurve(test, metrics, settings.test_every)
        callbacks.append(curve)  # type: ignore[arg-type]
    callbacks.append(Checkpointing(folder, settings.checkpoint_minutes, stop, metrics))  # type: ignore[arg-type]
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Advice for users of Lightning, and its calls of functions that torch has deprecated.
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.", category=FutureWarning)
            trainer = Trainer(
                accelerator="gpu" if settings.accelerator == "cuda" else settings.accelerator,
                devices=settings.devices,
                strategy=_strategy(settings, module.step.student),
                precision="bf16-mixed" if settings.precision == "bfloat16" else "32-true",
                max_epochs=settings.epochs,
                accumulate_grad_batches=settings.accumulate,
                logger=log,
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
        raise Interrupted(stop.received) from error  # the signal ended the loader's workers too
    finally:
        progress.close()
        loader.close()

    trainer.strategy.barrier()
    if settings.keep == "best" and (folder / BEST).is_file():
        load_result(module.step.student, folder, BEST)
    elif module.average is not None:
        module.average.apply()
    if (quantization := module.step.quantization) is not None:
        quantization.round_stored()
        module.step.student.stored = quantization.settings.stored
    summary = _summary(trainer, metrics, validation, curve, module, loader.unreadable)
    if trainer.is_global_zero:
        penalties = {name: own.state_dict() for name, own in module.step.regularizers.items()}
        carried = {term.name: term.carried() for term in module.step.terms}
        follows = any(term.reads_momentum and carried[term.name] for term in module.step.terms)
        momentum = module.step.momentum.own_state() if module.step.momentum is not None and follows else None
        save_result(module.step.student, folder, carried, penalties, momentum)
        write_atomic(folder / SUMMARY, json.dumps(asdict(summary), indent=2).encode())
    trainer.strategy.barrier()
    return summary


def save_result(
    student: Student,
    folder: Path,
    carried: Carried | None = None,
    regularizers: Carried | None = None,
    momentum: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a trained student's weights as the result of the fit in a folder.

    Args:
        student: after training.
        folder: of the fit.
        carried: name of a term → what a later fit of a stream starts with, see ``Term.carried``; None: nothing.
        regularizers: name of a penalty on moving away from earlier tasks → its state; None: there is none.
        momentum: ``own_state`` of the momentum network, if a term carries on with it.
    """
    head = reused(student.model)
    content: dict[str, Any] = {
        "student": student.own_state(),
        "classes": student.shapes.classes,
        "head": None if head is None else head.model_dump(),
        "carried": {name: dict(state) for name, state in (carried or {}).items() if state},
        "momentum": None if momentum is None else dict(momentum),
        "stored": student.stored,
    }
    if regularizers:
        content["regularizers"] = {name: dict(state) for name, state in regularizers.items()}
    VerifiedCheckpointIO().save_checkpoint(content, folder / RESULT)


def load_carried(folder: Path) -> Carried:
    """What the objectives of a finished fit carry over to a later one, from its result; see ``FitSpec.carried``.

    It is the state after the last update, also where the student is that of the best epoch.

    Raises:
        CheckpointError: the file cannot be read, or is damaged.
    """
    carried: Carried = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)["carried"]
    return carried


def load_momentum(folder: Path) -> dict[str, Tensor] | None:
    """The momentum network after a finished fit, as ``MomentumNetwork.own_state`` gives it; None if none is kept.

    It is that after the last update, as :func:`load_carried` says.

    Raises:
        CheckpointError: the file cannot be read, or is damaged.
    """
    momentum: dict[str, Tensor] | None = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)["momentum"]
    return momentum


def load_summary(folder: Path) -> FitSummary:
    """Summary of the finished fit in a folder. Raises ``CheckpointError`` if it cannot be read."""
    try:
        return FitSummary(**json.loads((folder / SUMMARY).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / SUMMARY} cannot be read: {error}") from error


def load_result(student: Student, folder: Path, file: str = RESULT) -> None:
    """Load the weights of a fit into a student.

    Args:
        student: of the same network, deltas and classes; changed in place.
        folder: of the fit.
        file: which of its files.

    Raises:
        CheckpointError: the file cannot be read, or is damaged.
        NetworkError: its tensors do not fit the student.
    """
    content = VerifiedCheckpointIO().load_checkpoint(folder / file)
    check_fits(student.own_state(), content["student"], str(folder / file))
    student.load_state_dict(content["student"], strict=False)
    student.stored = content.get("stored", {})


def _load_regularizers(module: Distillation, folder: Path) -> None:
    """Load the states of regularizers at the end of a finished fit."""
    if module.step.regularizers:
        states = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)["regularizers"]
        for name, own in module.step.regularizers.items():
            own.load_state_dict(states[name])
        module.step.watch_parameters()


def _strategy(settings: TrainingSettings, student: Student) -> str | Strategy:
    if settings.devices == 1:
        return "auto"
    # static_graph: every step uses the same parameters, but maybe not all (if no term reads the head's logits).
    moving = student.full or reused(student.model) is not None  # batch-norm statistics must be equal on all ranks
    # torch's reducer cannot skip its synchronization in the first step of a static graph, as accumulation does.
    unused = {"static_graph": True} if settings.accumulate == 1 else {"find_unused_parameters": True}
    return DDPStrategy(broadcast_buffers=moving, gradient_as_bucket_view=True, **unused)  # type: ignore[arg-type]


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
