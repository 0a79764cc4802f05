import math

import pytest
import torch
from torch import tensor

from distill.models.features import FeatureShapes
from distill.objectives.kd import KD, kd
from distill.objectives.logits import standardize


def by_hand(student, teacher, temperature, standardized):
    """The equation, one sample and one class at a time."""

    def row(values):
        if standardized:
            mean = sum(values) / len(values)
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            values = [(v - mean) / (std + 1e-7) for v in values]
        total = sum(math.exp(v / temperature) for v in values)
        return [math.exp(v / temperature) / total for v in values]

    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist()):
        total += sum(p_t * math.log(p_t / p_s) for p_s, p_t in zip(row(z_s), row(z_t)))
    return temperature**2 * total / len(student)


def test_one_sample_on_paper():
    student, teacher = tensor([[0.0, 0.0]]), tensor([[2 * math.log(3.0), 0.0]])  # at T 2: 1/2, 1/2 and 3/4, 1/4
    expected = 4 * (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2))
    assert kd(student, teacher, temperature=2).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 100)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("standardized", [False, True])
def test_equals_the_equation(shape, temperature, standardized):
    generator = torch.Generator().manual_seed(shape[1])
    student, teacher = 3 * torch.randn(2, *shape, generator=generator)
    expected = by_hand(student, teacher, temperature, standardized)
    assert kd(student, teacher, temperature, standardized).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("standardized", [False, True])
def test_zero_with_zero_gradient_where_the_student_equals_the_teacher(standardized):
    teacher = torch.randn(4, 10)
    student = teacher.clone().requires_grad_()
    loss = kd(student, teacher, standardize=standardized)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and student.grad.abs().max() < 1e-6


def test_t_squared_keeps_the_gradient_s_size():
    student, teacher = torch.randn(2, 4, 10, dtype=torch.float32)
    assert kd(5 * student, 5 * teacher, 5.0).item() == pytest.approx(25 * kd(student, teacher, 1.0).item(), rel=1e-5)
    student.requires_grad_()
    (hot,) = torch.autograd.grad(kd(student, teacher, 100.0), student)
    centered = (student - teacher) - (student - teacher).mean(dim=1, keepdim=True)
    torch.testing.assert_close(hot, centered.detach() / (10 * 4), rtol=0.05, atol=1e-3)  # the limit of large T


def test_standardized_rows_forget_shift_and_scale():
    logits = torch.randn(4, 10)
    rows = standardize(logits)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.std(dim=1), torch.ones(4))
    torch.testing.assert_close(standardize(7 * logits + 3), rows, atol=1e-5, rtol=1e-5)


def test_equal_logits_stay_finite_when_standardized():
    student = torch.zeros(2, 5, requires_grad=True)
    loss = kd(student, torch.randn(2, 5), standardize=True)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_one_class():
    assert kd(torch.randn(3, 1), torch.randn(3, 1)).item() == 0
    with pytest.raises(ValueError, match=r"\(3, 1\) cannot be standardized: at least two classes are needed"):
        kd(torch.randn(3, 1), torch.randn(3, 1), standardize=True)


@pytest.mark.parametrize("shape", [(1, 10), (8, 1), (8, 100)])
def test_shapes_that_would_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=rf"\(8, 10\) and \({shape[0]}, {shape[1]}\)"):
        kd(torch.zeros(8, 10), torch.zeros(shape))


def test_networks_of_different_classes_are_refused_before_data_flows():
    with pytest.raises(ValueError, match="the student has 10 classes, the teacher 1000"):
        KD(KD.Settings(), FeatureShapes(classes=10, pooled=4), FeatureShapes(classes=1000, pooled=4))
