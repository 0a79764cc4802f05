"""Every file in ``configs/`` is read, and one training step of it is made, as the checks before a run make it.

Objectives, deltas, view policy, optimizers and networks are its own; the source is another, the pixels are fewer, and
no weights are fetched. Of a stream, the first two tasks are tried. One config of each kind is run to its student.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_boxes import write_coco

from distill.config import validate_tree
from distill.continual.cifar100 import SUPERCLASSES
from distill.data.base import Sample, Samples, Source, Split
from distill.experiments.continual import ContinualExperiment
from distill.experiments.distillation import DistillationExperiment as Experiment
from distill.experiments.few_shot import FewShotExperiment
from distill.experiments.student import StudentExperiment
from distill.models.student import Student
from distill.models.teacher_settings import OF_STUDENT
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import RunFolder
from distill.run.prepare import StudentSpec
from distill.run.runner import check_plan, finish
from distill.run.stage import Stage
from distill.run.trial import Trial
from distill.run.trial_fit import try_fit
from distill.stages.learn_task import FIT, LearnTask
from distill.stages.outputs import TrainedStudent
from distill.training.fit import load_summary
from distill.training.signals import StopSignal
from distill.yaml_tree import load_tree, merge_trees

CONFIGS = Path(__file__).parents[1] / "configs"
BATCH = 8
SIDE = 32
SMALLER = {"resnet18_cifar": "resnet20_cifar"}
"""Networks that are slow without a GPU, and what stands for them."""


class Noise(Source):
    """One batch of noise to train on, with four classes."""

    class Settings(Source.Settings):
        pass

    has_split = frozenset({"train", "val", "test"})
    classes = tuple("abcd")

    def split(self, name: Split) -> Samples:
        return NoiseSamples(name)


class NoiseOfManyClasses(Noise):
    """An image of each class of CIFAR-100, for streams."""

    class Settings(Noise.Settings):
        pass

    classes = tuple(name for names in SUPERCLASSES.values() for name in names)

    def split(self, name: Split) -> Samples:
        return NoiseSamples(name, len(self.classes), len(self.classes))


class NoiseSamples:
    def __init__(self, name: str, count: int = BATCH, classes: int = 4):
        self.ids = [f"{name}/{index}" for index in range(count)]
        self.labels = [index % classes for index in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return Sample(image, self.labels[index], self.ids[index])


def small(tree: dict[str, Any], output: Path) -> StudentExperiment:
    """The config on one batch of small images, with networks that are at hand."""
    own = validate_tree(tree, "as it is")
    many = isinstance(own, ContinualExperiment) and own.stream.type in ("classes", "superclasses", "online")
    source = (NoiseOfManyClasses if many else Noise).__name__
    once = {"epochs": 1, "accelerator": "cpu", "devices": 1, "schedule": {"type": "constant", "warmup": 0}}
    changes: dict[str, Any] = {
        "output": str(output),
        "data": {"source": {"type": f"{__name__}:{source}"}, "batch_size": BATCH, "size": SIDE, "workers": 0},
        "training": once,
    }
    if "student" in tree:
        changes["student"] = {"network": at_hand(tree["student"]["network"]), "compile": False}
    if own.data.target is not None:
        changes["data"]["target"] = changes["data"]["source"]
        changes["source_training"] = once
    if getattr(own, "distill", None) is not None:
        changes["distill"] = once
    if "anomaly" in tree:
        changes["anomaly"] = {"normal": ["a"]}
    if own.kind in ("few_shot", "zero_shot"):
        changes["training"] = {"accelerator": "cpu"}
    if isinstance(own, FewShotExperiment):
        changes["episodes"] = {"ways": 2, "shots": [1], "queries": 1, "episodes": 2, "classes": 2}
    if isinstance(own, FewShotExperiment) and own.meta is not None:
        short = {"iterations": 1, "tasks": 1, "ways": 2, "shots": 1, "inner_steps": 1, "test_steps": 1}
        changes["meta"] = {"type": own.meta.type, **short, "test_episodes": 2}
    if own.fit_teacher is not None:
        changes["fit_teacher"] = {"training": once}
    if own.teacher is not None and own.teacher.networks:
        changes["teacher"] = {"networks": [at_hand(single) for single in tree["teacher"]["networks"]], "compile": False}
    return validate_tree(merge_trees(tree, changes), "made small")


def at_hand(network: dict[str, Any]) -> dict[str, Any]:
    if network["model"] in OF_STUDENT:
        return network
    embedded = network["model"].startswith("embedded:")
    model = SMALLER.get(network["model"], network["model"])
    labels = network.get("labels")
    if isinstance(labels, dict) and labels.get("by") == "text":
        network = {**network, "labels": {**labels, "encoder": "toy_text_encoder:BagOfWords"}}
    return {**network, "model": model, "size": SIDE, "checkpoint": None, **({} if embedded else {"pretrained": False})}


def test_there_are_configs() -> None:
    assert CONFIGS / "quickstart.yaml" in CONFIGS.rglob("*.yaml")
    assert not [path for path in CONFIGS.rglob("*") if path.is_file() and path.suffix != ".yaml"]


@cache
def kinds() -> dict[Path, str]:
    """Every config and its kind."""
    return {path: load_tree(path).get("kind", "distillation") for path in sorted(CONFIGS.rglob("*.yaml"))}


def configs(*of: str) -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(CONFIGS))) for path, kind in kinds().items() if kind in of]


def test_every_kind_of_config_has_a_test() -> None:
    assert set(kinds().values()) == {
        "distillation",
        "continual",
        "target_domain",
        "source_free",
        "detection",
        "unsupervised",
        "offsite",
        "few_shot",
        "zero_shot",
    }


class Tried:
    """The fits of which one step was made: each changed its student, to finite numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.names: list[str] = []
        monkeypatch.setattr("distill.run.fit_spec.try_fit", self._try)

    def _try(self, spec: FitSpec, student: Student, trial: Trial, name: str) -> None:
        before = {key: tensor.clone() for key, tensor in student.own_state().items()}
        try_fit(spec, student, trial, name)
        after = student.own_state()
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        assert not all(torch.equal(before[key], after[key]) for key in before), f"{name}: the step changed nothing"
        self.names.append(name)


def until_trained(experiment: StudentExperiment) -> list[Stage[Any]]:
    """The stages up to the student; of a stream, those of the first two tasks."""
    stages = experiment.plan()
    check_plan(stages)
    if isinstance(experiment, ContinualExperiment):
        learners = [stage for stage in stages if isinstance(stage, LearnTask) and stage.name.endswith("/student")]
        return [*experiment.plan_teacher(), *learners[:2]]
    last = LAST.get(experiment.kind, "student")
    return stages[: 1 + max(number for number, stage in enumerate(stages) if stage.name in last)]


LAST = {"offsite": ("plugged-in",), "unsupervised": ("student", "scores", "anomaly")}
"""Kind → the stages of which the last one is the last that is tried, where that is not the student's."""


@pytest.mark.slow
@pytest.mark.parametrize("path", configs("distillation", "continual", "target_domain", "unsupervised", "offsite"))
def test_a_step_of_every_config(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(load_tree(path), tmp_path)
    tried = Tried(monkeypatch)
    with StopSignal() as stop:
        trial = replace(RunContext.of(experiment, stop), trial=Trial(tmp_path))
        for stage in until_trained(experiment):
            if (output := stage.check(trial)) is not None:
                trial.outputs[stage.name] = output
    of_students = [name for name in tried.names if name.endswith("student")]
    assert len(of_students) == (2 if isinstance(experiment, ContinualExperiment) else 1)


@pytest.mark.slow
def test_a_teacher_and_a_student_are_fitted(tmp_path: Path) -> None:
    experiment = small(load_tree(CONFIGS / "quickstart.yaml"), tmp_path)
    assert isinstance(experiment, Experiment)
    trained = adapted(experiment, tmp_path / "run")
    assert trained.fit.steps == 1 and trained.teacher is not None
    fresh = StudentSpec(experiment.student, experiment.seed, 4, trained.student.needs).build()
    before, after = fresh.own_state(), trained.student.own_state()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not all(torch.equal(before[name], after[name]) for name in before), "the step changed nothing"


def adapted(experiment: StudentExperiment, folder: Path, last: str = "student") -> TrainedStudent:
    """The student that a stage makes, after the stages that it starts from."""
    with StopSignal() as stop:
        context = RunContext.of(experiment, stop)
        context.folder = RunFolder(folder, {"status": "running", "stages": {}})
        for stage in experiment.plan():
            finish(stage, context, folder / stage.name)
            if stage.name == last:
                trained: TrainedStudent = context.outputs[stage.name]
                return trained
    raise AssertionError("the plan has no student")


@pytest.mark.slow
@pytest.mark.parametrize("path", configs("source_free"))
def test_a_source_free_config_goes_on_with_a_student_of_two_domains(path: Path, tmp_path: Path) -> None:
    experiment = small(load_tree(CONFIGS / "transfer/quick.yaml"), tmp_path)
    trained = adapted(experiment, tmp_path / "both")
    assert trained.fit.steps == 2, "of a batch of each domain, the source has more images than half a batch"
    tree = load_tree(path) | {"start": str(tmp_path / "both/source-only/delta")}
    assert adapted(small(tree, tmp_path), tmp_path / "free").fit.steps == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", configs("detection"))
def test_a_step_of_every_detector(path: Path, tmp_path: Path) -> None:
    """On a few rectangles; the backbone is the pretrained network instead of a run's."""
    tree = load_tree(path)
    tree |= {"output": str(tmp_path), "controls": {}}
    source = {"type": "coco", "root": str(write_coco(tmp_path / "boxes"))}
    tree["data"] |= {"source": source, "workers": 0, "batch_size": 6}
    tree["backbone"] |= {"start": None, "network": {"model": "embedded:tf_efficientnet_lite0"}}
    tree["detector"] |= {"min_size": SIDE, "max_size": 2 * SIDE}
    tree["training"] |= {"epochs": 1, "accelerator": "cpu", "schedule": {"type": "constant"}}
    experiment = validate_tree(tree, "made small")
    stage = experiment.plan()[0]
    with StopSignal() as stop:
        context = RunContext.of(experiment, stop)
        trained = stage.run(context, tmp_path / "student")
    assert trained.fit.steps == 1
    assert all(torch.isfinite(tensor).all() for tensor in trained.built.own_state().values())


@pytest.mark.slow
@pytest.mark.parametrize("path", configs("few_shot"))
def test_episodes_of_every_few_shot_config(path: Path, tmp_path: Path) -> None:
    experiment = small(load_tree(path), tmp_path)
    assert isinstance(experiment, FewShotExperiment)
    with StopSignal() as stop:
        context = RunContext.of(experiment, stop)
        context.folder = RunFolder(tmp_path, {"status": "running", "stages": {}})
        for stage in experiment.plan():
            if stage.name == "test":
                break
            finish(stage, context, tmp_path / stage.name)
    assert context.outputs["student"].student.shapes.classes == 4
    names = ["episodes"] + ["trained-episodes"] * (experiment.meta is not None)
    for name in names:
        assert all(len(own) == 2 and own.isfinite().all() for own in context.outputs[name].accuracies.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", configs("zero_shot"))
def test_the_head_of_every_zero_shot_config(path: Path, tmp_path: Path) -> None:
    tree = load_tree(path)
    text = {**tree["text"], "encoder": "toy_text_encoder:BagOfWords"}
    experiment = small({**tree, "unseen": 1, "text": text}, tmp_path)
    with StopSignal() as stop:
        context = RunContext.of(experiment, stop)
        context.folder = RunFolder(tmp_path, {"status": "running", "stages": {}})
        for stage in experiment.plan():
            if stage.name == "test":
                break
            finish(stage, context, tmp_path / stage.name)
    head = context.outputs["student"].student.model.get_classifier()
    assert head.weight.shape[0] == 4 and head.weight.isfinite().all()


@pytest.mark.slow
def test_a_stream_begins_with_ranks_of_a_budget(tmp_path: Path) -> None:
    experiment = small(load_tree(CONFIGS / "continual/halrp_lite0.yaml"), tmp_path)
    learner = until_trained(experiment)[0]
    with StopSignal() as stop:
        context = RunContext.of(experiment, stop)
        learned = learner.run(context, tmp_path / learner.name)
    assert load_summary(tmp_path / learner.name / FIT).steps >= 1
    [part] = learned.parts
    tensors = part.load().model.state_dict().values()
    assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point())
