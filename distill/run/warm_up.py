"""Warm-ups: short trainings before a fit, from which entries of ``student.deltas`` choose their settings.

Some deltas choose ranks, masks or initial values from data before training (``Delta.prepares``). A warm-up replaces
such entries by dense deltas D at the same sites and trains those: a weight is W + D, and the gradient of the weight is
that of D. Everything else is as in the fit that follows: data, objectives and teacher are the same, the other weights
of the backbone and its batch norms are frozen, the head and the other entries learn. (HALRP also trains biases and
norms; for that, list ``bias`` and ``norm_affine`` beside it.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from distill.deltas.attach import layer_at
from distill.deltas.base import DeltaInit, DeltaSettings, Gradients, StructuralDelta, WeightDelta
from distill.deltas.dense import Dense
from distill.deltas.sites import classifier_names, find_target
from distill.deltas.state import head_state, load_exactly
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.run.fit_spec import FitSpec
from distill.run.warm_up_stats import WarmUpPoint

WEIGHTS_LR_SCALE = 0.1
"""Default learning rate of a warm-up's dense deltas over that of the fit, whose deltas need a larger one."""


class StudentMaker(Protocol):
    """Builds the students of warm-ups; :class:`distill.run.prepare.StudentSpec` implements it."""

    @property
    def settings(self) -> StudentSettings: ...

    def build(
        self, inits: Sequence[DeltaInit] | None = None, deltas: tuple[DeltaSettings, ...] | None = None
    ) -> Student: ...


class WarmUp:
    """The warm-ups of one fit. Each runs once, in its own folder; an interrupted one is resumed.

    Args:
        spec: builds the student.
        fit_spec: the fit that the warm-ups precede.
        folder: of the fit.
        name: of the fit, for the console.
        full_epochs: number of epochs that the lengths of warm-ups are relative to; a fit of another number scales them.
    """

    def __init__(self, spec: StudentMaker, fit_spec: FitSpec, folder: Path, name: str, full_epochs: int):
        self.spec, self.fit_spec, self.folder, self.name, self.full_epochs = spec, fit_spec, folder, name, full_epochs
        self._points: dict[tuple, WarmUpPoint] = {}

    def backbone(self) -> nn.Module:
        """The network before training: equal weights at every call."""
        return self.spec.build(deltas=()).model

    def point(self, epochs: int, train: Literal["weights", "head"], lr: float | None) -> WarmUpPoint:
        """The student after a warm-up.

        Args:
            epochs: length of the warm-up; 0: the student before any training.
            train: "weights": dense deltas, head and other entries learn; "head": the head alone.
            lr: constant learning rate; None: the fit's for the head, a tenth of it for the weights.

        Returns:
            The student with dense deltas. Equal arguments return the same point.
        """
        known = epochs, train if epochs else "weights", lr if epochs else None
        if known not in self._points:
            self._points[known] = self._reach(epochs, train, lr)
        return self._points[known]

    def _reach(self, epochs: int, train: Literal["weights", "head"], lr: float | None) -> WarmUpPoint:
        name = f"{self.name}: warm-up"
        student = self.spec.build(deltas=tuple(_dense_in_place_of(entry) for entry in self.spec.settings.deltas))
        if not epochs:
            return WarmUpPoint(self.fit_spec, student, name, None)
        usual = self.fit_spec.training.optimizer.lr
        rate = lr or (usual if train == "head" else WEIGHTS_LR_SCALE * usual)
        # A fit of another length, such as the control, gets a warm-up of the same fraction of its epochs.
        scaled = max(1, round(epochs * self.fit_spec.training.epochs / self.full_epochs))
        fit_spec = self.fit_spec.for_warm_up(scaled, rate)
        folder = self.folder / f"warm-up-{train}-{epochs}-{rate:g}"
        if train == "weights":
            fit_spec.fit(student, folder, name)
        else:
            alone = self.spec.build(deltas=())
            fit_spec.fit(alone, folder, name)
            heads = [head_state(model, classifier_names(model)) for model in (student.model, alone.model)]
            load_exactly(heads[0], heads[1], "head")
        return WarmUpPoint(self.fit_spec, student, name, folder)


class StudentCalibration:
    """Implements ``distill.deltas.base.Calibration`` for one entry of ``student.deltas``.

    Args:
        warm_up: runs the warm-ups.
        number: of the entry.
    """

    def __init__(self, warm_up: WarmUp, number: int):
        self.warm_up, self.number = warm_up, number

    @cached_property
    def backbone(self) -> nn.Module:
        return self.warm_up.backbone()

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        sites = self.warm_up.point(0, "weights", None).dense_deltas(self.number)
        return {site: layer_at(self.backbone, find_target(self.backbone, site)) for site in sites}

    def after(
        self, epochs: int, train: Literal["weights", "head"] = "weights", lr: float | None = None
    ) -> StudentCalibrationStats:
        """The statistics after a warm-up.

        Args:
            epochs: length of the warm-up; 0: before any training.
            train: "weights" or "head", as in :meth:`WarmUp.point`.
            lr: constant learning rate; None: the default of :meth:`WarmUp.point`.

        Returns:
            Weights, gradients and feature changes at the sites of this entry.
        """
        return StudentCalibrationStats(self, self.warm_up.point(epochs, train, lr))


class StudentCalibrationStats:
    """Implements ``distill.deltas.base.CalibrationStats``: the statistics of one warm-up for one entry.

    Args:
        calibration: the entry's.
        point: the student after the warm-up.
    """

    def __init__(self, calibration: StudentCalibration, point: WarmUpPoint):
        self.calibration, self.point, self.student = calibration, point, point.student

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        dense = self.point.dense_deltas(self.calibration.number)
        layers = self.calibration.layers
        return {site: (layers[site].weight + delta.D.cpu()).detach() for site, delta in dense.items()}  # type: ignore

    def gradients(self, samples: int) -> Mapping[str, Gradients]:
        return self.point.gradients(samples)[self.calibration.number]

    def feature_change(self, samples: int) -> Mapping[str, float]:
        return self.point.feature_change(self.calibration.number, samples)


def _dense_in_place_of(entry: DeltaSettings) -> DeltaSettings:
    """Settings of dense deltas at the sites of an entry that chooses from data; the settings of any other entry."""
    method = entry.component
    if issubclass(method, StructuralDelta) and method.prepares(entry):  # type: ignore[arg-type, union-attr]
        return Dense.Settings()
    if issubclass(method, WeightDelta) and method.prepares(entry):  # type: ignore[arg-type, union-attr]
        kinds = tuple(kind for kind in entry.kinds or sorted(method.kinds) if kind in Dense.kinds)  # type: ignore
        return Dense.Settings(sites=entry.sites, exclude=entry.exclude, kinds=kinds)
    return entry
