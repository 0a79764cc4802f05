"""Stages: the teacher that is fitted once, several teachers, every view policy, data without labels."""

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from toy_training import Watched, assert_bit_equal, experiment, fit_teachers, network, student_fit, watching

from augment.dual import AugmentSettings
from distill.data.base import DataError
from distill.deltas.base import DeltaError
from distill.experiments.distillation import DistillationExperiment as Experiment
from distill.models.network import Network, NetworkError
from distill.models.teacher import Teacher
from distill.run.context import RunContext
from distill.run.predict import logits_of, predict_teacher
from distill.run.runner import check_stages
from distill.run.stage import StageError
from distill.training.checkpoints import CheckpointError
from distill.training.signals import StopSignal

FIT = {"training": {"epochs": 1, "accelerator": "cpu"}}


pytestmark = pytest.mark.usefixtures("blank_previews")


def teachers(settings: Experiment, checked: bool = True) -> tuple[list[Network], int]:
    """The teacher's networks, and how many steps it took to get them, the checks of all stages before it or not."""
    watched = Watched()
    with watching(None, lambda *step: watched.seen.append(step)), StopSignal() as stop:
        context = RunContext.of(settings, stop)
        if checked:
            check_stages(settings.plan(), context)
        return fit_teachers(settings, context), len(watched.seen)


def fitted(tmp_path: Path, **changes: Any) -> Experiment:
    return experiment(tmp_path, **{"fit_teacher": FIT, **changes})


@pytest.mark.parametrize("method", ["finetune", "probe"])
def test_a_fitted_teacher_is_found_again(method: str, tmp_path: Path) -> None:
    settings = fitted(tmp_path, fit_teacher={**FIT, "method": method})
    [first], steps = teachers(settings)
    assert steps == (5 if method == "finetune" else 0)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "teachers").rglob("*") if path.is_file()}
    [second], steps = teachers(settings)
    assert steps == 0
    assert_bit_equal(second.model.state_dict(), first.model.state_dict())
    assert {path: path.stat().st_mtime_ns for path in written} == written and len(written) > 0
    other_student = fitted(tmp_path, fit_teacher={**FIT, "method": method}, student={"deltas": []})
    assert teachers(other_student)[1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"network": {"model": "test_resnett"}}}, "timm has no model 'test_resnett'"),
        (
            {"student": {"deltas": [{"type": "low_rank", "ranks": {"budget": "6KB"}, "sites": "blokcs.*"}]}},
            "student.deltas.0: low_rank: pattern 'blokcs.*' matches no",
        ),
        (
            {
                "student": {
                    "network": {"model": "test_mambaout", "pretrained": False},
                    "deltas": [{"type": "ladder", "reduction": 2}],
                }
            },
            "ladder: no side block can be pruned from 'stages.0.blocks.0' (GatedConvBlock) at "
            "'stages.0.blocks.0.conv': 16 inputs after 96 channels; set init: random",
        ),
        ({"objectives": [{"type": "fitnets", "stages": {"layer9": "layer1"}}]}, "layer9"),
        ({"training": {"test_every": 1}, "data": {"source": {"tested": False}}}, "test_every needs a test split"),
    ],
)
def test_a_mistake_in_the_student_is_an_error_before_its_teacher_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((NetworkError, DeltaError, StageError), match=re.escape(message)):
        teachers(fitted(tmp_path, **changes))
    assert not (tmp_path / "teachers").exists()


@pytest.mark.slow
def test_a_teacher_of_other_content_is_fitted_anew(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"fit_teacher": {**FIT, "training": {**FIT["training"], "optimizer": {"lr": 0.1}}}},
        {"augment": {"student": ["RandomVerticalFlip"]}},
        {"data": {"size": 40}},
        {"data": {"batch_size": 11}},
        {"data": {"labels_per_class": 2}, "fit_teacher": {**FIT, "labels": "same"}},
        {"data": {"labels_per_class": 3}, "fit_teacher": {**FIT, "labels": "same"}},
        {"data": {"labels_per_class": 3, "label_seed": 1}, "fit_teacher": {**FIT, "labels": "same"}},
    ]
    for number, changes in enumerate(variants):
        assert teachers(fitted(tmp_path, **changes), checked=False)[1] > 0, changes
        assert len(list((tmp_path / "teachers").iterdir())) == number + 1
    for changes in ({"data": {"labels_per_class": 1, "label_seed": 5}}, {"data": {"workers": 1}}):
        assert teachers(fitted(tmp_path, **changes), checked=False)[1] == 0, f"{changes} makes no difference to it"
    folder = Path(network(tmp_path, "test_resnet")["model"].removeprefix("local-dir:"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["conv1.0.weight"] += 1
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    assert teachers(fitted(tmp_path), checked=False)[1] > 0, (
        "a file of the same name with other weights is another teacher"
    )


def test_a_damaged_teacher_is_named(tmp_path: Path) -> None:
    settings = fitted(tmp_path)
    teachers(settings)
    [path] = (tmp_path / "teachers").rglob("result.ckpt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{path}: damaged"):
        teachers(settings)


def test_a_teacher_needs_labels_to_be_fitted(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="fit_teacher needs labels"):
        teachers(fitted(tmp_path, data={"source": {"labeled": False}}, objectives=[{"type": "kd"}]))


@pytest.mark.slow
def test_several_teachers_with_weights(tmp_path: Path) -> None:
    """A weight of all but nothing makes one teacher; the ensemble's word is the weighted mean of probabilities."""
    first, second = network(tmp_path, "test_resnet"), network(tmp_path, "test_resnet", seed=1)
    networks = [{**first, "weight": 1e-9}, {**second, "weight": 1.0}]
    terms = {"objectives": [{"type": "ce"}, {"type": "kd"}]}
    alone = student_fit(experiment(tmp_path, teacher={"networks": [second]}, **terms), tmp_path / "alone")
    both = student_fit(experiment(tmp_path, teacher={"networks": networks}, **terms), tmp_path / "both")
    for name, weight in alone.weights.items():
        assert torch.allclose(both.weights[name], weight, atol=1e-4), name

    settings = experiment(tmp_path, teacher={"networks": [{**first, "weight": 3.0}, second]})
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        made = fit_teachers(settings, context)
        teacher = Teacher(made, [3.0, 1.0])
        predictions = predict_teacher(context, teacher, "val")
        parts = [
            context.predict(
                n.model,
                lambda view, n=n: logits_of(teacher.features_of(n.model, view)),
                n.input,
                context.loader("val", n.input),
            )
            for n in made
        ]
    expected = (0.75 * parts[0].logits.softmax(1) + 0.25 * parts[1].logits.softmax(1)).log()
    assert torch.allclose(predictions.logits, expected, atol=1e-6)


@pytest.mark.parametrize("policy", AugmentSettings.model_fields["policy"].annotation.__args__)  # type: ignore
def test_every_policy_trains(policy: str, tmp_path: Path) -> None:
    settings = experiment(tmp_path, augment={"policy": policy}, training={"epochs": 1, "schedule": {"warmup": 0}})
    fit = student_fit(settings, tmp_path / "fit")
    assert fit.summary and fit.summary.steps == 5
    assert any(weight.abs().sum() > 0 for name, weight in fit.weights.items() if name.endswith(".B"))


def test_without_labels_and_classes(tmp_path: Path) -> None:
    changes = {"data": {"source": {"labeled": False}}, "objectives": [{"type": "pooled"}, {"type": "kd"}]}
    fit = student_fit(experiment(tmp_path, **changes), tmp_path / "fit")
    assert fit.student and fit.student.shapes.classes == 4, "as many as the teacher has"
    assert fit.summary and list(fit.summary.scores) == ["val/agreement"]


def test_outputs_that_do_not_compare_are_an_error(tmp_path: Path) -> None:
    teacher = {"networks": [{"model": "test_resnet", "pretrained": False}]}
    with pytest.raises(StageError, match="the student has 4 classes, the teacher 1000"):
        student_fit(experiment(tmp_path, teacher=teacher), tmp_path / "fit")


def test_a_label_out_of_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/007: label 9 is out of range: the source has 4 classes"):
        student_fit(experiment(tmp_path, data={"source": {"wrong_label": 7}}), tmp_path / "fit")
