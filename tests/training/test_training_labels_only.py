"""The control "labels only": the student's cross-entropy and order of samples, without the teacher."""

from pathlib import Path
from typing import Any

import pytest
from toy_training import control_fit, experiment

from distill.data.balanced_order import BalancedOrder
from distill.objectives.ce import CrossEntropy
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.stages.labels_only import LabelsOnly
from distill.training.signals import StopSignal

WEIGHTS = (1.0, 2.0, 0.5, 0.5)


def control(settings: Any) -> LabelsOnly:
    (stage,) = (stage for stage in settings.plan() if isinstance(stage, LabelsOnly))
    return stage


@pytest.mark.parametrize("weights", [WEIGHTS, "balanced"])
def test_it_has_the_students_class_weights(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ce = {"type": "ce", "class_weights": weights, "label_smoothing": 0.1, "weight": 0.3, "schedule": {"warmup": 1}}
    settings = experiment(tmp_path, objectives=[{"type": "kd"}, ce], training={"epochs": 1, "schedule": {"warmup": 0}})
    expected = CrossEntropy.Settings(class_weights=weights, label_smoothing=0.1)
    assert control(settings).cross_entropy == expected, "with weight 1 from the start: there is no other term"
    trained_with = []
    original = FitSpec.module

    def noted(spec: FitSpec, *arguments: Any) -> Any:
        module = original(spec, *arguments)
        trained_with.extend(module.step.terms)
        return module

    monkeypatch.setattr(FitSpec, "module", noted)
    with StopSignal() as stop:
        control_fit(settings, RunContext.of(settings, stop), 2, tmp_path / "control")
    (term,) = trained_with
    assert term.settings == expected
    (objective,) = term.objectives
    # Of the 44 training samples, each class has 11, so balanced weights are equal.
    assert objective.class_weights_K.tolist() == ([1.0] * 4 if weights == "balanced" else list(WEIGHTS))


def test_without_a_cross_entropy_it_has_a_plain_one_and_another_key_for_another(tmp_path: Path) -> None:
    plain = experiment(tmp_path, objectives=[{"type": "kd"}])
    assert control(plain).cross_entropy == CrossEntropy.Settings()
    smoothed = experiment(tmp_path, objectives=[{"type": "kd"}, {"type": "ce", "label_smoothing": 0.2}])
    with StopSignal() as stop:
        context = RunContext.of(plain, stop)
        assert control(plain).key(context) != control(smoothed).key(context)


def test_it_draws_classes_as_the_student_does(tmp_path: Path) -> None:
    settings = experiment(tmp_path, data={"sampler": "balanced"})
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
    spec = FitSpec(context, None, (CrossEntropy.Settings(),), settings.augment, settings.training, labeled_only=True)
    assert isinstance(spec.loader().sampler.order, BalancedOrder)
