import math

import pytest
import torch
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.icd import ICD, icd


def by_hand(student, teacher, scale, invariance, labels=None):
    """The equation, one pair at a time."""

    def unit(row):
        length = math.sqrt(sum(v * v for v in row))
        return [v / length for v in row]

    u_s, u_t = [unit(r) for r in student.tolist()], [unit(r) for r in teacher.tolist()]
    n = len(u_s)
    labels = [-1] * n if labels is None else labels.tolist()
    weight = [
        [
            0.0 if i != j and labels[i] == labels[j] != -1 else math.exp(scale * sum(a * b for a, b in zip(s, t)))
            for j, t in enumerate(u_t)
        ]
        for i, s in enumerate(u_s)
    ]
    p1 = [[weight[i][j] / sum(weight[i]) for j in range(n)] for i in range(n)]
    p2 = [[weight[j][i] / sum(weight[k][i] for k in range(n)) for j in range(n)] for i in range(n)]
    contrast = -sum(math.log(p1[i][i]) for i in range(n)) / n
    kl = sum(p2[i][j] * math.log(p2[i][j] / p1[i][j]) for i in range(n) for j in range(n) if p2[i][j] > 0) / n
    return contrast + invariance * kl


def build(student=6, teacher=9, **settings):
    shapes = FeatureShapes(classes=3, pooled=student), FeatureShapes(classes=3, pooled=teacher)
    return ICD(ICD.Settings(**settings), *shapes)


def test_two_orthogonal_samples_on_paper():
    """l = [[s, 0], [0, s]]: both softmaxes agree, so only the contrast is left."""
    features = tensor([[3.0, 0.0], [0.0, 5.0]])
    assert icd(features, features, scale=2.0).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_the_invariance_term_on_paper():
    """l = [[1, 1], [0, 0]]: rows are even, columns lean to the first student."""
    student, teacher = tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([[1.0, 0.0], [1.0, 0.0]])
    p = math.e / (math.e + 1)
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert icd(student, teacher, 1.0, invariance=0.0).item() == pytest.approx(math.log(2))
    assert icd(student, teacher, 1.0, invariance=0.5).item() == pytest.approx(math.log(2) + 0.5 * kl)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("width", [2, 16])
@pytest.mark.parametrize(("scale", "invariance"), [(1.0, 0.5), (10.0, 0.5), (2.7, 0.0)])
@pytest.mark.parametrize("labeled", [False, True])
def test_equals_the_equation(batch, width, scale, invariance, labeled):
    generator = torch.Generator().manual_seed(batch)
    student, teacher = torch.randn(2, batch, width, generator=generator)
    labels = tensor([0, 1, 0, -1, 1, -1, 0])[:batch] if labeled else None
    expected = by_hand(student, teacher, scale, invariance, labels)
    assert icd(student, teacher, scale, invariance, labels).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_minimum_where_student_equals_teacher_and_samples_are_orthogonal():
    identity = torch.eye(5)
    least = icd(identity, identity, scale=10.0).item()
    assert least == pytest.approx(math.log(1 + 4 * math.exp(-10)), rel=1e-3)
    assert icd(identity.roll(1, 0), identity, scale=10.0).item() > least + 5


def test_blind_to_the_length_of_features():
    student, teacher = torch.randn(2, 4, 8)
    assert icd(100 * student, teacher / 100, 3.0).item() == pytest.approx(icd(student, teacher, 3.0).item(), rel=1e-5)


def test_all_of_one_class_leaves_no_negative():
    student = torch.randn(4, 8, requires_grad=True)
    loss = icd(student, torch.randn(4, 8), 3.0, labels_B=torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


def test_masked_pairs_leave_the_gradient_finite():
    student, teacher = torch.randn(2, 3, 8)
    student.requires_grad_()
    icd(student, teacher, 2.0, labels_B=tensor([0, 0, 1])).backward()
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 0


def test_a_batch_of_one_is_a_zero_that_can_be_trained_on():
    student = torch.randn(1, 8, requires_grad=True)
    loss = icd(student, torch.randn(1, 8), 1.0)
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_scale_starts_at_e_is_learned_and_stops_at_ten():
    term = build()
    assert term.scale.item() == pytest.approx(math.e)
    assert "tau" in term.no_weight_decay and "tau" in dict(term.named_parameters())
    term.tau.data.fill_(5.0)
    assert term.scale.item() == 10


def test_projectors_of_both_sides_learn_and_the_setting_reaches_them():
    term = build(dim=4)
    teacher = Features(pooled=torch.randn(5, 9))
    term(Features(pooled=torch.randn(5, 6)), teacher, Targets(torch.zeros(5, dtype=torch.long))).backward()
    assert term.student_projector.weight.shape == (4, 6) and term.teacher_projector.weight.shape == (4, 9)
    assert all(p.grad.abs().sum() > 0 for name, p in term.named_parameters())


def test_mask_same_class_reaches_the_loss():
    labels = Targets(torch.zeros(5, dtype=torch.long))
    features = Features(pooled=torch.randn(5, 6)), Features(pooled=torch.randn(5, 9))
    assert build()(*features, labels).item() > 0
    assert build(mask_same_class=True)(*features, labels).item() == 0


def test_projected_features_of_different_batches_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 4\) and \(1, 4\)"):
        icd(torch.zeros(8, 4), torch.zeros(1, 4), 1.0)
