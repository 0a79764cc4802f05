"""Teachers of other classes than the student's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from several_teachers import LABELS, SHAPES, STUDENTS, TEACHERS, networks
from toy_training import experiment, student_fit

from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMap, LabelMaps
from distill.objectives.base import Targets
from distill.objectives.ce import CrossEntropy
from distill.objectives.deit import DeiT
from distill.objectives.dkd import DKD
from distill.objectives.kd import KD, kd
from distill.objectives.pooled import PooledFeature
from distill.run.stage import StageError
from distill.training.module import Distillation
from distill.training.terms import build_terms

# Of the student's a, b, c the teacher knows c and a, and something else between them.
SOME = LabelMap({0: [2], 2: [0]}, 3, 3)


def term_of(settings: Any, maps: list[LabelMap | None]) -> Any:
    [term] = build_terms((settings,), SHAPES, [SHAPES] * len(maps), LabelMaps(maps))
    return term


def test_kd_compares_the_shared_classes_alone() -> None:
    term = term_of(KD.Settings(), [SOME])
    student = Features(STUDENTS[0].logits.clone().requires_grad_())
    [loss] = term([student], TEACHERS[:1], ((0, 0),), [Targets(LABELS)])
    torch.testing.assert_close(loss, kd(student.logits[:, [0, 2]], TEACHERS[0][0].logits[:, [2, 0]]))
    loss.backward()
    assert student.logits.grad is not None and student.logits.grad[:, 1].abs().sum() == 0
    [loss_of_equals] = term([Features(TEACHERS[0][0].logits[:, [2, 1, 0]])], TEACHERS[:1], ((0, 0),), [Targets(LABELS)])
    assert loss_of_equals.item() == pytest.approx(0, abs=1e-6)


def test_labels_become_places_among_the_shared_classes() -> None:
    dkd = DKD(DKD.Settings(), *SOME.shapes(SHAPES, SHAPES))
    narrow = [Features(STUDENTS[0].logits[:, [0, 2]]), Features(TEACHERS[0][0].logits[:, [2, 0]])]
    expected = dkd(*narrow, Targets(torch.tensor([0, -1, 1, -1, 0])))
    [actual] = term_of(DKD.Settings(), [SOME])(STUDENTS[:1], [TEACHERS[0][:1]], ((0, 0),), [Targets(LABELS)])
    torch.testing.assert_close(actual, expected)


def test_features_and_the_labels_own_term_see_every_class() -> None:
    wide = FeatureShapes(classes=7, pooled=4)
    terms = build_terms((CrossEntropy.Settings(), PooledFeature.Settings()), SHAPES, [wide], LabelMaps([SOME]))
    assert [term.maps[0] for term in terms] == [None, None]
    with pytest.raises(ValueError, match="the student has 3 classes, the teacher 7"):
        build_terms((KD.Settings(),), SHAPES, [wide])
    with pytest.raises(ValueError, match="deit teaches the student the labels too"):
        term_of(DeiT.Settings(), [SOME])
    term_of(DeiT.Settings(), [LabelMap({0: [2], 1: [1], 2: [0]}, 3, 3)])


@pytest.mark.slow
def test_teachers_of_other_classes_and_sizes_teach_together(tmp_path: Path) -> None:
    """One as the student, one of a thousand classes that looks at fewer pixels, one that knows two of the four."""
    wide = {"model": "test_vit", "pretrained": False, "size": 48, "labels": {"a": 5, "b": [7, 8], "c": 0, "d": 999}}
    few = {"model": "test_efficientnet", "pretrained": False, "size": 64, "labels": {"a": 1, "d": 0}, "weight": 2}
    sizes: list[list[int]] = []

    def watch(module: Distillation) -> None:
        assert module.step.teacher is not None
        sizes.append([spec.size[0] for spec in module.step.teacher.inputs])

    for weighting in ("fixed", "agreement"):
        settings = experiment(
            tmp_path,
            teacher={"networks": [*networks(tmp_path, 0), wide, few], "weighting": {"type": weighting}},
            objectives=[{"type": "ce"}, {"type": "kd"}, {"type": "dkd"}, {"type": "icd", "dim": 4}],
        )
        watched = student_fit(settings, tmp_path / weighting, watch)
        assert watched.summary and {"val/accuracy", "val/agreement"} <= watched.summary.scores.keys()
    assert sizes[0] == [32, 48, 64]


def test_labels_that_cannot_be_followed_are_named(tmp_path: Path) -> None:
    for labels, message in [({"x": 0}, "the data has no class 'x'"), ("names", "random has no class names")]:
        network_settings = {"model": "test_resnet", "pretrained": False, "size": 32, "labels": labels}
        settings = experiment(tmp_path, teacher={"networks": [network_settings]})
        with pytest.raises(StageError, match=rf"teacher\.networks\.0\.labels: {message}"):
            student_fit(settings, tmp_path / "fit")
    network_settings = {"model": "test_resnet", "pretrained": False, "size": 32}
    gap = {"curriculum": {"epochs": 1}}
    settings = experiment(
        tmp_path, teacher={"networks": [network_settings]}, objectives=[{"type": "pooled"}], training=gap
    )
    with pytest.raises(StageError, match="curriculum by the gap: the student has 4 classes, the teacher 1000"):
        student_fit(settings, tmp_path / "fit")
