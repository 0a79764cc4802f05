"""Types of the outputs that stages give to later stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.deltas.base import stored_bytes
from distill.models.network import Network
from distill.models.settings import NetworkSettings
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.report.curves import read_curves
from distill.report.items import Curve, Item, Note, Row
from distill.run.context import RunContext
from distill.run.predict import predict_pooled, predict_student, predict_teacher
from distill.run.prepare import StudentSpec
from distill.run.stage import StageError
from distill.run.teacher_network import make_network
from distill.training.evaluate import Predictions
from distill.training.fit import FitSummary
from distill.training.probe import LinearProbe


@dataclass(frozen=True)
class TeacherNetworks:
    """The networks of a teacher, and the summaries of the fits that trained them by gradient descent, if any."""

    networks: tuple[Network, ...]
    fits: tuple[FitSummary, ...] = ()


@dataclass(frozen=True)
class EvaluatedModel(ABC):
    """A model that can be evaluated: a row of the result table.

    Args:
        name: of the row.
        what: a few words about the model and its training data.
    """

    name: str
    what: str

    @abstractmethod
    def predict(self, context: RunContext, split: Split) -> Predictions:
        """Its predictions on a split."""

    def row(self) -> Row:
        """Its row, without the results on the split."""
        return Row(name=self.name, what=self.what)


@dataclass(frozen=True)
class TrainedStudent(EvaluatedModel):
    """A student after its fit.

    Args:
        student: for evaluation and export.
        teacher: of its fit; None if there was none.
        spec: that it was built from.
        fit: summary of the finished fit.
        folder: of the fit.
    """

    student: Student
    teacher: Teacher | None
    spec: StudentSpec
    fit: FitSummary
    folder: Path

    def predict(self, context: RunContext, split: Split) -> Predictions:
        return predict_student(context, self.student, split)

    def row(self) -> Row:
        row = Row(
            name=self.name,
            what=self.what,
            trained=sum(p.numel() for p in self.student.parameters() if p.requires_grad),
            bytes=stored_bytes(self.student.own_state()),
            seconds=self.fit.seconds,
        )
        if (best := self.fit.best_on_test) is None:
            return row
        epoch, accuracy = best
        epochs = {"last_epoch": self.fit.test_accuracies[-1], "best_epoch": accuracy, "best_at": epoch + 1}
        return row.model_copy(update=epochs)

    def items(self) -> Iterable[Item]:
        """Its curves, and the warnings about its fit."""
        if (log := self.folder / "log.csv").is_file():
            yield Curve(name=self.name, log=read_curves(log))
        yield from fit_notes(self.name, self.fit)


@dataclass(frozen=True)
class TrainedProbe(EvaluatedModel):
    """Logistic regression on a frozen backbone's pooled features."""

    probe: LinearProbe
    network: Network
    seconds: float

    def predict(self, context: RunContext, split: Split) -> Predictions:
        return self.probe.predict(predict_pooled(context, self.network, context.loader(split, self.network.input)))

    def row(self) -> Row:
        trained = self.probe.weight.numel() + self.probe.bias.numel()
        return Row(name=self.name, what=self.what, trained=trained, bytes=4 * trained, seconds=self.seconds)


@dataclass(frozen=True)
class FrozenTeacher(EvaluatedModel):
    """The teacher, as a row beside its students."""

    teacher: Teacher

    def predict(self, context: RunContext, split: Split) -> Predictions:
        return predict_teacher(context, self.teacher, split)

    def row(self) -> Row:
        size = sum(4 * parameter.numel() for parameter in self.teacher.parameters())
        return Row(name=self.name, what=self.what, bytes=size)


def check_classes(data: ExperimentData) -> None:
    """Raise ``StageError`` for data with a single class, which nothing can be learned from."""
    if len(data.classes) == 1:
        raise StageError(
            f"the data has one class only, {data.classes[0]!r} (source {data.settings.source.type!r}): a classifier "
            "needs two or more. Is that folder one around the folders of the classes? For images without labels, "
            "set data.source.labels to false"
        )


def fit_notes(name: str, fit: FitSummary) -> Iterable[Note]:
    """Warnings about a fit: loss spikes, images that could not be read."""
    if fit.spikes:
        yield Note(text=f"{name}: {fit.spikes} loss spike(s), see log.csv")
    for reason in fit.unreadable.values():
        yield Note(text=f"unreadable image skipped in training: {reason}")


def network_notes(networks: Iterable[Network]) -> Iterable[Note]:
    """What a user should know about how the weights of networks were read from files."""
    for network in networks:
        for note in network.notes:
            yield Note(text=note)


def pretrained_networks(
    settings: Iterable[NetworkSettings], seed: int, classes: int | None = None
) -> tuple[Network, ...]:
    """Networks with pretrained weights; random weights are the same at every call.

    Args:
        settings: of each network.
        seed: of random weights.
        classes: number of classes of new heads; None: the networks keep their heads.

    Returns:
        The networks, in the order of ``settings``.
    """
    torch.manual_seed(seed)
    return tuple(make_network(each, classes) for each in settings)
