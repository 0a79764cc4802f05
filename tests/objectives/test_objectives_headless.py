"""A teacher without a classifier, such as a self-supervised ViT: what reads its logits is refused, with what to do."""

import pytest
import timm
import torch
from torch import nn

import distill
from augment.base import Registry
from distill.models.class_names import label_map
from distill.models.features import FeatureShapes
from distill.models.label_map import LabelMaps
from distill.models.network import as_network
from distill.models.teacher_settings import CacheSettings, WeightingSettings
from distill.training.cache_rows import CacheError, RowLayout
from distill.training.curriculum import Curriculum
from distill.training.settings import CurriculumSettings
from distill.training.teacher_weights import TeacherWeights

REGISTRY = Registry("distill.objectives", "Objective")
METHODS = {name: REGISTRY.settings_of(name).component for name in sorted(REGISTRY.known())}
ON_LOGITS = [
    name
    for name, method in METHODS.items()
    # The momentum network's outputs are like the student's.
    if method.reads_teacher and not method.reads_momentum and ("logits" in method.needs or method.sets_head)  # type: ignore[union-attr]
]
STUDENT = FeatureShapes(8, 8, {"last": (8, 2, 2)}, nn.Linear(8, 8))
HEADLESS = FeatureShapes(0, 8, {"last": (8, 2, 2)})
"""Its pooled features are as wide as the student's logits: the number of classes alone would show no difference."""
TEXT = r"the teacher has no classifier, .*fit_teacher \(method: probe .*such as pooled or fitnets"


def test_a_network_without_classifier_has_no_classes() -> None:
    for model in (
        timm.create_model("test_vit", num_classes=0, img_size=32),
        timm.create_model("test_resnet", num_classes=0),
    ):
        teacher = distill.create_teacher(model, size=32, needs="pooled")
        assert teacher.shapes[0].classes == 0 and teacher.shapes[0].pooled > 0
        assert not teacher.has_classes(0) and not teacher.has_classes(teacher.shapes[0].pooled)
        assert label_map("same", as_network(model), []) is None
    replaced = timm.create_model("test_resnet")
    replaced.fc = nn.Identity()
    assert distill.create_teacher(replaced, size=32).shapes[0].classes == 0


@pytest.mark.parametrize("name", ON_LOGITS)
def test_objectives_on_logits(name: str) -> None:
    assert {"kd", "dkd", "dist", "simkd"} <= set(ON_LOGITS)
    with pytest.raises(ValueError, match=TEXT):
        distill.create_objective(name, student=STUDENT, teacher=HEADLESS)


def test_objectives_on_features_take_it() -> None:
    for name in ("pooled", "fitnets", "rkd"):
        distill.create_objective(name, student=STUDENT, teacher=HEADLESS)


def test_other_readers_of_its_logits() -> None:
    for by in ("gap", "entropy"):
        with pytest.raises(ValueError, match=rf"training\.curriculum by the {by}: {TEXT}"):
            Curriculum(CurriculumSettings(by=by, epochs=1), STUDENT, [HEADLESS], LabelMaps())
    for kind in ("confidence", "agreement"):
        with pytest.raises(ValueError, match=rf"teacher\.weighting: {kind}, network 1: {TEXT}"):
            TeacherWeights(WeightingSettings(type=kind), [0.5, 0.5], LabelMaps(), [STUDENT, HEADLESS])
    TeacherWeights(WeightingSettings(), [1.0], LabelMaps(), [HEADLESS])
    with pytest.raises(CacheError, match=r"teacher\.cache\.logits: the teacher has no classifier; set none"):
        RowLayout([HEADLESS], 1, CacheSettings(pooled=True))
    layout = RowLayout([HEADLESS], 1, CacheSettings(logits="none", pooled=True))
    rows = layout.encode([[distill.Features(logits=torch.ones(2, 8), pooled=torch.ones(2, 8))]])
    assert rows.keys() == {"pooled.0.0"}
    network = as_network(timm.create_model("test_resnet", num_classes=0))
    with pytest.raises(ValueError, match="has no classifier, so it has no classes to map; leave labels out"):
        label_map("names", network, ["cat", "dog"])
