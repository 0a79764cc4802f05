import math

import pytest
import torch
from torch import nn, tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.pooled import PooledFeature, pooled

DISTANCES = ["cosine", "mse", "whitened_mse"]


def by_hand(student, teacher, distance):
    """The equation, one value at a time."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        if distance == "cosine":
            lengths = math.sqrt(sum(a * a for a in s)) * math.sqrt(sum(b * b for b in t))
            total += 1 - sum(a * b for a, b in zip(s, t)) / lengths
            continue
        if distance == "whitened_mse":
            mean = sum(t) / len(t)
            variance = sum((b - mean) ** 2 for b in t) / len(t)
            t = [(b - mean) / math.sqrt(variance + 1e-5) for b in t]
        total += sum((a - b) ** 2 for a, b in zip(s, t)) / len(s)
    return total / len(student)


def build(student=6, teacher=6, **settings):
    shapes = FeatureShapes(classes=3, pooled=student), FeatureShapes(classes=3, pooled=teacher)
    return PooledFeature(PooledFeature.Settings(**settings), *shapes)


def test_on_paper():
    student, teacher = tensor([[1.0, 1.0]]), tensor([[3.0, 1.0]])
    assert pooled(student, teacher, "cosine").item() == pytest.approx(1 - 4 / math.sqrt(20))
    assert pooled(student, teacher, "mse").item() == pytest.approx((4 + 0) / 2)
    assert pooled(student, teacher, "whitened_mse").item() == pytest.approx((0 + 4) / 2, rel=1e-5)  # target (1, −1)


@pytest.mark.parametrize("shape", [(1, 2), (5, 16), (3, 129)])
@pytest.mark.parametrize("distance", DISTANCES)
def test_equals_the_equation(shape, distance):
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(shape[1])) + 0.5
    expected = by_hand(student, teacher, distance)
    assert pooled(student, teacher, distance).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_zero_where_the_student_equals_the_teacher(distance):
    term = build(distance=distance, projector="identity")
    feature = torch.randn(4, 6)
    loss = term(Features(pooled=feature), Features(pooled=feature.clone()), Targets(torch.full((4,), -1)))
    assert loss.item() == pytest.approx(0, abs=1e-6) and not list(term.parameters())


def test_the_whitened_target_is_reached_at_zero_and_is_blind_to_the_teacher_s_scale():
    teacher = torch.randn(4, 6)
    target = nn.LayerNorm(6, elementwise_affine=False)(teacher)
    assert pooled(target, teacher, "whitened_mse").item() == pytest.approx(0, abs=1e-6)
    assert pooled(target, 50 * teacher + 7, "whitened_mse").item() == pytest.approx(0, abs=1e-4)


def test_a_linear_projector_bridges_the_widths():
    term = build(student=6, teacher=9)
    loss = term(Features(pooled=torch.randn(4, 6)), Features(pooled=torch.randn(4, 9)), Targets(torch.full((4,), -1)))
    loss.backward()
    assert term.projector.weight.shape == (9, 6) and term.projector.weight.grad.abs().sum() > 0


def test_identity_between_different_widths_is_refused():
    with pytest.raises(ValueError, match="pooled width 6 differs from the teacher's 9; use projector: linear"):
        build(student=6, teacher=9, projector="identity")


@pytest.mark.parametrize("distance", DISTANCES)
def test_shapes_that_would_broadcast_are_refused(distance):
    with pytest.raises(ValueError, match=r"\(8, 6\) and \(1, 6\)"):
        pooled(torch.zeros(8, 6), torch.zeros(1, 6), distance)
