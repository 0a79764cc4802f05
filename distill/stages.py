"""The parts of a run that train something: the teacher, the controls, the student. Each is one fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from augment.dual import AugmentSettings, DualAugment
from augment.errors import ExplainedError
from augment.views import InputSpec
from distill.config import Experiment
from distill.data.base import UNLABELLED, Split
from distill.data.loader import Loader
from distill.data.module import DataModule, DataSettings
from distill.models.features import Features
from distill.models.network import Network, NetworkSettings, create_network, extract
from distill.models.student import Student, StudentSettings
from distill.models.teacher import DTYPES, Teacher
from distill.objectives.base import Objective
from distill.objectives.ce import CrossEntropy
from distill.run_folder import RunError, is_first_rank, local_rank
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.evaluate import Predictions, predict
from distill.training.fit import RESULT, FitSummary, device_for, fit, load_result, save_result
from distill.training.module import Distillation
from distill.training.probe import LinearProbe, fit_probe
from distill.training.settings import TrainingSettings
from distill.training.signals import StopSignal
from distill.training.terms import build_terms, needs_of


class StageError(ExplainedError, ValueError):
    """A stage cannot run on this data or with these networks; the text says what does not fit."""


@dataclass
class Workshop:
    """What every stage needs: the experiment, its data, where to show what happens, and who asks it to stop."""

    experiment: Experiment
    data: DataModule
    console: Console | None
    stop: StopSignal
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id → reason of the images that training had to skip."""

    @property
    def device(self) -> torch.device:
        return device_for(self.experiment.training)

    @property
    def connected(self) -> bool:
        """Whether there are ranks that share the work of ``predict``: from the start of the first fit on."""
        return dist.is_available() and dist.is_initialized()

    def loader(self, split: Split) -> Loader:
        """The split in order: this rank's share of it once the ranks are connected, all of it before."""
        return self.data.eval_loader(split, self.connected)

    def labelled_loader(self) -> Loader:
        """The training samples whose labels are shown, shared out in the same way."""
        return self.data.labelled_loader(self.connected)

    def predict(
        self, module: nn.Module, logits_of: Callable[[Tensor], Tensor], spec: InputSpec, loader: Loader
    ) -> Predictions:
        """Predictions of a module in eval mode, on the device; afterwards it is where and as it was."""
        before, modes = next(module.parameters()).device, [(part, part.training) for part in module.modules()]
        module.to(self.device).eval()
        try:
            return predict(logits_of, loader, spec, self.device)
        finally:
            module.to(before)
            for part, training in modes:
                part.training = training


def predict_student(shop: Workshop, student: Student, split: Split) -> Predictions:
    return shop.predict(student, lambda view: logits_of(student(view)), student.input, shop.loader(split))


def predict_pooled(shop: Workshop, network: Network, loader: Loader) -> Predictions:
    """Pooled features in the place of logits."""
    model = network.model

    def pooled(view: Tensor) -> Tensor:
        found = extract(model, view, frozenset({"pooled"})).pooled
        assert found is not None
        return found

    return shop.predict(model, pooled, network.input, loader)


def predict_teacher(shop: Workshop, teacher: Teacher, split: Split) -> Predictions:
    """Log of the weighted mean of the networks' probabilities; each network sees the split at its own size."""
    mean: Tensor | None = None
    single: Predictions | None = None
    for network, spec, weight in zip(teacher.networks, teacher.inputs, teacher.weights, strict=True):

        def one(view: Tensor, network: nn.Module = network) -> Tensor:
            return logits_of(teacher.look(network, view))

        single = shop.predict(teacher, one, spec, shop.loader(split))
        share = weight * single.logits.softmax(1)
        mean = share if mean is None else mean + share
    assert mean is not None and single is not None
    return Predictions(mean.log(), single.labels, single.ids)


def logits_of(features: Features) -> Tensor:
    assert features.logits is not None
    return features.logits


# --- Teacher ------------------------------------------------------------------------------------------------------


def prepare_teachers(shop: Workshop) -> list[Network]:
    """The teacher's networks, fitted first if the experiment says so."""
    settings = shop.experiment.teacher
    assert settings is not None
    if shop.experiment.fit_teacher is None:
        torch.manual_seed(shop.experiment.seed)  # a network of random weights must be the same one on resume
        return [create_network(network) for network in settings.networks]
    return [fit_teacher(shop, network) for network in settings.networks]


def teacher_folder(shop: Workshop, network: NetworkSettings, weights: str) -> Path:
    """Named by everything that the fitted teacher depends on, so that an equal fit is found again.

    Args:
        weights: identity of the network's own weights, since a file or folder may hold others tomorrow.
    """
    experiment, data = shop.experiment, _teacher_data(shop)
    of_no_matter = {"workers", "worker_timeout", "start_method"}
    if data.settings.labels_per_class is None:
        of_no_matter.add("label_seed")
    content = {
        "network": network.model_dump(mode="json", exclude={"weight"}),
        "weights": weights,
        "fit": experiment.fit_teacher.model_dump(mode="json"),  # type: ignore[union-attr]
        "augment": _teacher_augment(experiment).model_dump(mode="json"),
        "data": [data.fingerprint(), data.settings.model_dump(mode="json", exclude=of_no_matter)],
        "seed": experiment.seed,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return experiment.output / "teachers" / digest[:16]


def fit_teacher(shop: Workshop, settings: NetworkSettings) -> Network:
    """Fine-tune or probe one network on the labelled data; a finished fit of the same content is loaded instead."""
    experiment = shop.experiment
    fitting = experiment.fit_teacher
    assert fitting is not None
    data = _teacher_data(shop)
    if not data.classes:
        raise StageError("fit_teacher needs labels, and this source has no classes")
    torch.manual_seed(experiment.seed)
    network = create_network(settings, num_classes=len(data.classes))
    student = Student(network, StudentSettings(network=settings, train="whole", batch_norm=fitting.batch_norm))
    folder = teacher_folder(shop, settings, student.backbone.sha256)
    if fitting.method == "probe":
        if (folder / RESULT).is_file():
            load_result(student, folder)
        else:
            own = Workshop(experiment, data, shop.console, shop.stop)
            probe = fit_probe(
                predict_pooled(own, network, own.labelled_loader()),
                predict_pooled(own, network, own.loader("val")),
                len(data.classes),
            )
            probe.into(network.model.get_classifier())  # type: ignore[operator]
            if is_first_rank():
                save_result(student, folder)
    else:
        _fit(
            Workshop(experiment, data, shop.console, shop.stop),
            student,
            None,
            (CrossEntropy.Settings(),),
            _teacher_augment(experiment),
            fitting.training,
            folder,
            "teacher",
        )
    return network


def _teacher_data(shop: Workshop) -> DataModule:
    fitting = shop.experiment.fit_teacher
    assert fitting is not None
    if fitting.labels == "same":
        return shop.data
    return make_data(shop.experiment, shop.experiment.data.model_copy(update={"labels_per_class": None}))


def _teacher_augment(experiment: Experiment) -> AugmentSettings:
    fitting = experiment.fit_teacher
    assert fitting is not None
    return fitting.augment or experiment.augment.alone().model_copy(update={"mix": None})


# --- Student and controls -----------------------------------------------------------------------------------------


def new_student(shop: Workshop, needs: frozenset[str] = frozenset({"logits"}), classes: int | None = None) -> Student:
    """The experiment's student as it is before training: the same for every stage, since the seed is."""
    torch.manual_seed(shop.experiment.seed)
    settings = shop.experiment.student
    return Student(create_network(settings.network, classes or len(shop.data.classes)), settings, needs)


def trained_student(shop: Workshop, folder: Path) -> Student:
    """The student of a finished fit. Raises ``RunError`` if the fit is not finished."""
    if not (folder / RESULT).is_file():
        raise RunError(f"{folder} holds no finished fit; resume the run first")
    student = new_student(shop, classes=VerifiedCheckpointIO().load_checkpoint(folder / RESULT)["classes"])
    load_result(student, folder)
    return student


def linear_probe(shop: Workshop) -> tuple[LinearProbe, Network]:
    """The probe of the student's frozen backbone, on the labels that the student has."""
    torch.manual_seed(shop.experiment.seed)
    network = create_network(shop.experiment.student.network)
    train = predict_pooled(shop, network, shop.labelled_loader())
    return fit_probe(train, predict_pooled(shop, network, shop.loader("val")), len(shop.data.classes)), network


def labels_only(shop: Workshop, steps: int, folder: Path) -> tuple[Student, FitSummary]:
    """The same student with as many updates, learning from its labelled samples alone."""
    student = new_student(shop)
    per_epoch = len(shop.data.train_loader(labelled_only=True))
    epochs = max(1, -(-steps // per_epoch))
    before = shop.experiment.training
    schedule = before.schedule.model_copy(
        update={
            "warmup": before.schedule.warmup * epochs / before.epochs,
            "milestones": tuple(m * epochs / before.epochs for m in before.schedule.milestones),
        }
    )
    every = max(1, before.validate_every * epochs // before.epochs)
    training = before.model_copy(update={"epochs": epochs, "schedule": schedule, "validate_every": every})
    alone, objectives = shop.experiment.augment.alone(), (CrossEntropy.Settings(),)
    summary = _fit(shop, student, None, objectives, alone, training, folder, "labels only", labelled_only=True)
    return student, summary


def distil(shop: Workshop, teachers: list[Network], folder: Path) -> tuple[Student, Teacher | None, FitSummary]:
    """The experiment itself."""
    experiment = shop.experiment
    student_needs, teacher_needs = needs_of(experiment.objectives)
    teacher = None
    if experiment.teacher is not None:
        weights = [network.weight for network in experiment.teacher.networks]
        dtype = DTYPES[experiment.teacher.dtype]
        teacher = Teacher(teachers, weights, teacher_needs, dtype, experiment.teacher.compile)
    classes = len(shop.data.classes) or (teacher.shapes[0].classes if teacher else 0)
    student = new_student(shop, student_needs, classes)
    summary = _fit(
        shop, student, teacher, experiment.objectives, experiment.augment, experiment.training, folder, "student"
    )
    return student, teacher, summary


def _fit(
    shop: Workshop,
    student: Student,
    teacher: Teacher | None,
    objectives: tuple[Objective.Settings, ...],
    augment: AugmentSettings,
    training: TrainingSettings,
    folder: Path,
    name: str,
    labelled_only: bool = False,
) -> FitSummary:
    seed = shop.experiment.seed
    torch.manual_seed(seed)
    teachers = teacher.shapes if teacher else []
    try:
        terms = build_terms(objectives, student.shapes, teachers, teacher.weights if teacher else [])
    except ValueError as error:
        raise StageError(f"{name}: {error}") from error
    loader = shop.data.train_loader(labelled_only=labelled_only)
    dual = DualAugment(augment, teacher.inputs if teacher else (), student.input, seed)
    module = Distillation(student, teacher, terms, dual, training, len(loader))
    comparable = teacher is not None and {t.classes for t in teacher.shapes} == {student.shapes.classes}
    has_val = shop.data.has("val")
    scored = has_val and (comparable or bool((shop.data.part("val").labels != UNLABELLED).any()))
    if not scored and (training.early_stop or training.keep == "best"):
        wish = "training.early_stop" if training.early_stop else "training.keep: best"
        raise StageError(f"{name}: {wish} needs a score: labels to validate on, or a teacher of the same classes")
    summary = fit(
        module,
        loader,
        (lambda: predict_student(shop, student, "val")) if has_val else None,
        (lambda: predict_teacher(shop, teacher, "val")) if has_val and comparable and teacher else None,
        folder,
        name,
        shop.stop,
        shop.console,
    )
    shop.unreadable |= loader.unreadable
    return summary


def make_data(experiment: Experiment, settings: DataSettings | None = None) -> DataModule:
    return DataModule(settings or experiment.data, experiment.seed, experiment.training.devices, local_rank())
