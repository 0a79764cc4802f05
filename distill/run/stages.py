"""The parts of a run that train something: the teacher, the controls, the student. Each is one fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from augment.dual import AugmentSettings
from distill.config import Experiment
from distill.data.module import ExperimentData
from distill.models.class_names import label_map
from distill.models.label_map import LabelMaps
from distill.models.network import Network, NetworkSettings, create_network
from distill.models.reused_head import enlargement
from distill.models.settings import ReusedHead
from distill.models.student import Student, StudentSettings
from distill.models.teacher import DTYPES, Teacher
from distill.objectives.ce import CrossEntropy
from distill.run.context import RunContext, StageError, predict_pooled
from distill.run.fit_spec import FitSpec
from distill.run.folder import RunError, is_first_rank
from distill.run.prepare import finished, load_prepared, prepare, trial_student
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import RESULT, SUMMARY, FitSummary, load_result, save_result
from distill.training.probe import LinearProbe, fit_probe
from distill.training.terms import needs_of

# --- Teacher ------------------------------------------------------------------------------------------------------


def prepare_teachers(context: RunContext) -> list[Network]:
    """The teacher's networks, fitted first if the experiment says so."""
    settings = context.experiment.teacher
    assert settings is not None
    if context.experiment.fit_teacher is None:
        torch.manual_seed(context.experiment.seed)  # a network of random weights must be the same one on resume
        return [create_network(network) for network in settings.networks]
    if context.data.classes:
        _try_lesson(context)
    return [fit_teacher(context, network) for network in settings.networks]


def ready_teachers(context: RunContext) -> list[Network]:
    """The teacher's networks as a run would use them, if that takes no training.

    Raises:
        StageError: ``fit_teacher`` would have to train one first.
    """
    settings = context.experiment.teacher
    if settings is None:
        raise StageError("there is no teacher in this config; add teacher.networks")
    if context.experiment.fit_teacher is None:
        return prepare_teachers(context)
    networks = []
    for each in settings.networks:
        student, network, folder = _teacher_to_fit(context, each)
        if not _is_fitted(context.experiment, folder):
            raise StageError(
                f"the teacher {each.model} is not fitted yet, and this command trains nothing: run the config first"
                f" (distill train), with the same seed, data and fit_teacher; looked for in {folder}"
            )
        load_result(student, folder)
        networks.append(network)
    return networks


def teacher_folder(context: RunContext, network: NetworkSettings, weights: str) -> Path:
    """Named by everything that the fitted teacher depends on, so that an equal fit is found again.

    Args:
        weights: identity of the network's own weights, since a file or folder may hold others tomorrow.
    """
    experiment, data = context.experiment, _teacher_data(context)
    ignored = {"on_device", "workers", "worker_timeout", "start_method"}
    if data.settings.labels_per_class is None:
        ignored.add("label_seed")
    content = {
        "network": network.model_dump(mode="json", exclude={"weight", "labels"}),
        "weights": weights,
        "fit": experiment.fit_teacher.model_dump(mode="json"),  # type: ignore[union-attr]
        "augment": _teacher_augment(experiment).model_dump(mode="json"),
        "data": [data.fingerprint(), data.settings.model_dump(mode="json", exclude=ignored)],
        "seed": experiment.seed,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return experiment.output / "teachers" / digest[:16]


def fit_teacher(context: RunContext, settings: NetworkSettings) -> Network:
    """Fine-tune or probe one network on the labeled data; a finished fit of the same content is loaded instead."""
    experiment = context.experiment
    fitting = experiment.fit_teacher
    assert fitting is not None
    data = _teacher_data(context)
    student, network, folder = _teacher_to_fit(context, settings)
    if fitting.method == "probe":
        if _is_fitted(experiment, folder):
            load_result(student, folder)
        else:
            own = RunContext(experiment, data, context.console, context.stop)
            probe = fit_probe(
                predict_pooled(own, network, own.labeled_loader()),
                predict_pooled(own, network, own.loader("val")),
                len(data.classes),
            )
            probe.into(network.model.get_classifier())  # type: ignore[operator]
            if is_first_rank():
                save_result(student, folder)
    else:
        own = RunContext(experiment, data, context.console, context.stop)
        objectives = (CrossEntropy.Settings(),)
        fit_spec = FitSpec(own, None, objectives, _teacher_augment(experiment), fitting.training)
        context.teacher_fits.append(fit_spec.fit(student, folder, "teacher"))
    return network


def _teacher_to_fit(context: RunContext, settings: NetworkSettings) -> tuple[Student, Network, Path]:
    """One network as it is before its fit, wrapped to be trained whole, and the folder of the fit."""
    experiment, data = context.experiment, _teacher_data(context)
    assert experiment.fit_teacher is not None
    if not data.classes:
        raise StageError("fit_teacher needs labels, and this source has no classes")
    torch.manual_seed(experiment.seed)
    network = create_network(settings, num_classes=len(data.classes))
    batch_norm = experiment.fit_teacher.batch_norm
    student = Student(network, StudentSettings(network=settings, train="full", batch_norm=batch_norm))
    return student, network, teacher_folder(context, settings, student.backbone.sha256)


def _is_fitted(experiment: Experiment, folder: Path) -> bool:
    """Whether ``folder`` holds a finished fit: a probe leaves its result alone, training a summary too."""
    assert experiment.fit_teacher is not None
    return (folder / (RESULT if experiment.fit_teacher.method == "probe" else SUMMARY)).is_file()


def _teacher_data(context: RunContext) -> ExperimentData:
    fitting = context.experiment.fit_teacher
    assert fitting is not None
    return context.data if fitting.labels == "same" else context.data.with_all_labels()


def _teacher_augment(experiment: Experiment) -> AugmentSettings:
    fitting = experiment.fit_teacher
    assert fitting is not None
    return fitting.augment or experiment.augment.alone().model_copy(update={"mix": None, "ramp": None})


# --- Student and controls -----------------------------------------------------------------------------------------


def trained_student(context: RunContext, folder: Path) -> Student:
    """The student of a finished fit. Raises ``RunError`` if the fit is not finished."""
    if not (folder / RESULT).is_file():
        raise RunError(f"{folder} holds no finished fit; resume the run first")
    result = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)
    head = ReusedHead(**result["head"]) if result["head"] else None
    student = load_prepared(context, folder, frozenset({"logits"}), result["classes"], head)
    load_result(student, folder)
    return finished(context, student)


def linear_probe(context: RunContext) -> tuple[LinearProbe, Network]:
    """The probe of the student's frozen backbone, on the labels that the student has."""
    torch.manual_seed(context.experiment.seed)
    network = create_network(context.experiment.student.network)
    train = predict_pooled(context, network, context.labeled_loader())
    return fit_probe(train, predict_pooled(context, network, context.loader("val")), len(context.data.classes)), network


def labels_only(context: RunContext, steps: int, folder: Path) -> tuple[Student, FitSummary]:
    """The same student with as many updates, learning from its labeled samples alone."""
    per_epoch = len(context.data.train_loader(labeled_only=True))
    epochs = max(1, -(-steps // per_epoch))
    before = context.experiment.training
    schedule = before.schedule.model_copy(
        update={
            "warmup": before.schedule.warmup * epochs / before.epochs,
            "milestones": tuple(m * epochs / before.epochs for m in before.schedule.milestones),
        }
    )
    every = {
        key: value and max(1, value * epochs // before.epochs)
        for key, value in {"validate_every": before.validate_every, "test_every": before.test_every}.items()
    }
    training = before.model_copy(update={"epochs": epochs, "schedule": schedule, "curriculum": None, **every})
    alone, objectives = context.experiment.augment.alone(epochs / before.epochs), (CrossEntropy.Settings(),)
    fit_spec = FitSpec(context, None, objectives, alone, training, labeled_only=True)
    return _taught(fit_spec, folder, "labels only", frozenset({"logits"}), len(context.data.classes))


def make_teacher(experiment: Experiment, networks: list[Network], maps: LabelMaps | None = None) -> Teacher:
    """The teacher as training looks at it: all that objectives read, and that the cache keeps.

    Args:
        maps: of the networks' classes to the student's, for what compares the two.
    """
    settings = experiment.teacher
    assert settings is not None
    _, needs = needs_of(experiment.objectives)
    if settings.cache is not None:
        needs |= settings.cache.holds
    weights = [network.weight for network in settings.networks]
    return Teacher(networks, weights, needs, DTYPES[settings.dtype], settings.compile, maps, settings.weighting)


def label_maps(context: RunContext, networks: list[Network]) -> LabelMaps:
    """Of the teacher's networks. Raises ``StageError`` that names the network whose ``labels`` cannot be followed."""
    settings = context.experiment.teacher
    assert settings is not None
    maps = []
    for n, (own, network) in enumerate(zip(settings.networks, networks, strict=True)):
        try:
            maps.append(label_map(own.labels, network, context.data.classes))
        except ValueError as error:
            raise StageError(f"teacher.networks.{n}.labels: {error}") from error
    return LabelMaps(maps)


def distil(context: RunContext, teachers: list[Network], folder: Path) -> tuple[Student, Teacher | None, FitSummary]:
    """The experiment itself."""
    student_needs, _ = needs_of(context.experiment.objectives)
    fit_spec = _main_lesson(context, teachers)
    teacher = fit_spec.teacher
    classes = len(context.data.classes) or (teacher.shapes[0].classes if teacher else 0)
    student, summary = _taught(fit_spec, folder, "student", student_needs, classes)
    if context.console is not None and (larger := enlargement(student.model)) is not None:
        context.console.print(str(larger), highlight=False, soft_wrap=True)
    return student, teacher, summary


def _main_lesson(context: RunContext, teachers: list[Network]) -> FitSpec:
    """What the experiment's student learns from."""
    experiment, teacher = context.experiment, None
    if experiment.teacher is not None:
        teacher = make_teacher(experiment, teachers, label_maps(context, teachers))
    return FitSpec(context, teacher, experiment.objectives, experiment.augment, experiment.training)


def _try_lesson(context: RunContext) -> None:
    """Put the experiment's lesson together with a teacher that has learned nothing, for the errors that this raises."""
    assert context.experiment.teacher is not None
    classes = len(context.data.classes)
    fit_spec = _main_lesson(context, [create_network(each, classes) for each in context.experiment.teacher.networks])
    student = trial_student(context, needs_of(context.experiment.objectives)[0], classes, fit_spec.head)
    fit_spec.check(student, "student")


def _taught(
    fit_spec: FitSpec, folder: Path, name: str, needs: frozenset[str], classes: int
) -> tuple[Student, FitSummary]:
    """The experiment's student: prepared, trained, and cut down to what is exported."""
    student = prepare(fit_spec, folder, name, needs, classes)
    summary = fit_spec.fit(student, folder, name)
    return finished(fit_spec.context, student), summary
