"""The parts of a run that train something: the teacher, the controls, the student. Each is one fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from augment.dual import AugmentSettings
from distill.config import Experiment
from distill.data.module import DataModule
from distill.models.class_names import label_map
from distill.models.label_map import LabelMaps
from distill.models.network import Network, NetworkSettings, create_network
from distill.models.reused_head import enlargement
from distill.models.settings import ReusedHead
from distill.models.student import Student, StudentSettings
from distill.models.teacher import DTYPES, Teacher
from distill.objectives.ce import CrossEntropy
from distill.run.folder import RunError, is_first_rank
from distill.run.lesson import Lesson
from distill.run.preparing import finished, load_prepared, prepare, trial_student
from distill.run.workshop import StageError, Workshop, predict_pooled
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import RESULT, SUMMARY, FitSummary, load_result, save_result
from distill.training.probe import LinearProbe, fit_probe
from distill.training.terms import needs_of

# --- Teacher ------------------------------------------------------------------------------------------------------


def prepare_teachers(shop: Workshop) -> list[Network]:
    """The teacher's networks, fitted first if the experiment says so."""
    settings = shop.experiment.teacher
    assert settings is not None
    if shop.experiment.fit_teacher is None:
        torch.manual_seed(shop.experiment.seed)  # a network of random weights must be the same one on resume
        return [create_network(network) for network in settings.networks]
    if shop.data.classes:
        _try_lesson(shop)
    return [fit_teacher(shop, network) for network in settings.networks]


def ready_teachers(shop: Workshop) -> list[Network]:
    """The teacher's networks as a run would use them, if that takes no training.

    Raises:
        StageError: ``fit_teacher`` would have to train one first.
    """
    settings = shop.experiment.teacher
    if settings is None:
        raise StageError("there is no teacher in this config; add teacher.networks")
    if shop.experiment.fit_teacher is None:
        return prepare_teachers(shop)
    networks = []
    for each in settings.networks:
        student, network, folder = _teacher_to_fit(shop, each)
        if not _is_fitted(shop.experiment, folder):
            raise StageError(
                f"the teacher {each.model} is not fitted yet, and this command trains nothing: run the config first"
                f" (distill train), with the same seed, data and fit_teacher; looked for in {folder}"
            )
        load_result(student, folder)
        networks.append(network)
    return networks


def teacher_folder(shop: Workshop, network: NetworkSettings, weights: str) -> Path:
    """Named by everything that the fitted teacher depends on, so that an equal fit is found again.

    Args:
        weights: identity of the network's own weights, since a file or folder may hold others tomorrow.
    """
    experiment, data = shop.experiment, _teacher_data(shop)
    of_no_matter = {"on_device", "workers", "worker_timeout", "start_method"}
    if data.settings.labels_per_class is None:
        of_no_matter.add("label_seed")
    content = {
        "network": network.model_dump(mode="json", exclude={"weight", "labels"}),
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
    student, network, folder = _teacher_to_fit(shop, settings)
    if fitting.method == "probe":
        if _is_fitted(experiment, folder):
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
        own = Workshop(experiment, data, shop.console, shop.stop)
        objectives = (CrossEntropy.Settings(),)
        lesson = Lesson(own, None, objectives, _teacher_augment(experiment), fitting.training)
        shop.teacher_fits.append(lesson.fit(student, folder, "teacher"))
    return network


def _teacher_to_fit(shop: Workshop, settings: NetworkSettings) -> tuple[Student, Network, Path]:
    """One network as it is before its fit, wrapped to be trained whole, and the folder of the fit."""
    experiment, data = shop.experiment, _teacher_data(shop)
    assert experiment.fit_teacher is not None
    if not data.classes:
        raise StageError("fit_teacher needs labels, and this source has no classes")
    torch.manual_seed(experiment.seed)
    network = create_network(settings, num_classes=len(data.classes))
    batch_norm = experiment.fit_teacher.batch_norm
    student = Student(network, StudentSettings(network=settings, train="whole", batch_norm=batch_norm))
    return student, network, teacher_folder(shop, settings, student.backbone.sha256)


def _is_fitted(experiment: Experiment, folder: Path) -> bool:
    """Whether ``folder`` holds a finished fit: a probe leaves its result alone, training a summary too."""
    assert experiment.fit_teacher is not None
    return (folder / (RESULT if experiment.fit_teacher.method == "probe" else SUMMARY)).is_file()


def _teacher_data(shop: Workshop) -> DataModule:
    fitting = shop.experiment.fit_teacher
    assert fitting is not None
    return shop.data if fitting.labels == "same" else shop.data.with_all_labels()


def _teacher_augment(experiment: Experiment) -> AugmentSettings:
    fitting = experiment.fit_teacher
    assert fitting is not None
    return fitting.augment or experiment.augment.alone().model_copy(update={"mix": None, "ramp": None})


# --- Student and controls -----------------------------------------------------------------------------------------


def trained_student(shop: Workshop, folder: Path) -> Student:
    """The student of a finished fit. Raises ``RunError`` if the fit is not finished."""
    if not (folder / RESULT).is_file():
        raise RunError(f"{folder} holds no finished fit; resume the run first")
    result = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)
    head = ReusedHead(**result["head"]) if result["head"] else None
    student = load_prepared(shop, folder, frozenset({"logits"}), result["classes"], head)
    load_result(student, folder)
    return finished(shop, student)


def linear_probe(shop: Workshop) -> tuple[LinearProbe, Network]:
    """The probe of the student's frozen backbone, on the labels that the student has."""
    torch.manual_seed(shop.experiment.seed)
    network = create_network(shop.experiment.student.network)
    train = predict_pooled(shop, network, shop.labelled_loader())
    return fit_probe(train, predict_pooled(shop, network, shop.loader("val")), len(shop.data.classes)), network


def labels_only(shop: Workshop, steps: int, folder: Path) -> tuple[Student, FitSummary]:
    """The same student with as many updates, learning from its labelled samples alone."""
    per_epoch = len(shop.data.train_loader(labelled_only=True))
    epochs = max(1, -(-steps // per_epoch))
    before = shop.experiment.training
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
    alone, objectives = shop.experiment.augment.alone(epochs / before.epochs), (CrossEntropy.Settings(),)
    lesson = Lesson(shop, None, objectives, alone, training, labelled_only=True)
    return _taught(lesson, folder, "labels only", frozenset({"logits"}), len(shop.data.classes))


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


def label_maps(shop: Workshop, networks: list[Network]) -> LabelMaps:
    """Of the teacher's networks. Raises ``StageError`` that names the network whose ``labels`` cannot be followed."""
    settings = shop.experiment.teacher
    assert settings is not None
    maps = []
    for n, (own, network) in enumerate(zip(settings.networks, networks, strict=True)):
        try:
            maps.append(label_map(own.labels, network, shop.data.classes))
        except ValueError as error:
            raise StageError(f"teacher.networks.{n}.labels: {error}") from error
    return LabelMaps(maps)


def distil(shop: Workshop, teachers: list[Network], folder: Path) -> tuple[Student, Teacher | None, FitSummary]:
    """The experiment itself."""
    student_needs, _ = needs_of(shop.experiment.objectives)
    lesson = _main_lesson(shop, teachers)
    teacher = lesson.teacher
    classes = len(shop.data.classes) or (teacher.shapes[0].classes if teacher else 0)
    student, summary = _taught(lesson, folder, "student", student_needs, classes)
    if shop.console is not None and (larger := enlargement(student.model)) is not None:
        shop.console.print(str(larger), highlight=False, soft_wrap=True)
    return student, teacher, summary


def _main_lesson(shop: Workshop, teachers: list[Network]) -> Lesson:
    """What the experiment's student learns from."""
    experiment, teacher = shop.experiment, None
    if experiment.teacher is not None:
        teacher = make_teacher(experiment, teachers, label_maps(shop, teachers))
    return Lesson(shop, teacher, experiment.objectives, experiment.augment, experiment.training)


def _try_lesson(shop: Workshop) -> None:
    """Put the experiment's lesson together with a teacher that has learned nothing, for the errors that this raises."""
    assert shop.experiment.teacher is not None
    classes = len(shop.data.classes)
    lesson = _main_lesson(shop, [create_network(each, classes) for each in shop.experiment.teacher.networks])
    student = trial_student(shop, needs_of(shop.experiment.objectives)[0], classes, lesson.head)
    lesson.check(student, "student")


def _taught(lesson: Lesson, folder: Path, name: str, needs: frozenset[str], classes: int) -> tuple[Student, FitSummary]:
    """The experiment's student: prepared, trained, and cut down to what is exported."""
    student = prepare(lesson, folder, name, needs, classes)
    summary = lesson.fit(student, folder, name)
    return finished(lesson.shop, student), summary
