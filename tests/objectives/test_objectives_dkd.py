import math

import pytest
import torch
from torch import tensor

from distill.objectives.dkd import dkd
from distill.objectives.kd import kd


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def by_hand(student, teacher, labels, alpha, beta, temperature):
    """The equation, one sample at a time; unlabeled ones are left out."""
    losses = []
    for z_s, z_t, y in zip(student.tolist(), teacher.tolist(), labels.tolist()):
        if y < 0:
            continue
        (p_s, q_s), (p_t, q_t) = (
            (softmax([v / temperature for v in z])[y], softmax([v / temperature for k, v in enumerate(z) if k != y]))
            for z in (z_s, z_t)
        )
        target = p_t * math.log(p_t / p_s) + (1 - p_t) * math.log((1 - p_t) / (1 - p_s))
        others = sum(t * math.log(t / s) for s, t in zip(q_s, q_t))
        losses.append(temperature**2 * (alpha * target + beta * others))
    return sum(losses) / len(losses) if losses else 0.0


def test_one_sample_on_paper():
    """Student 1/3, 1/3, 1/3; teacher 1/2, 1/4, 1/4 with the first class true: only the target part differs."""
    student, teacher = torch.zeros(1, 3), tensor([[math.log(2.0), 0.0, 0.0]])
    expected = 1 / 2 * math.log(3 / 2) + 1 / 2 * math.log(3 / 4)
    assert dkd(student, teacher, tensor([0]), temperature=1).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.5)])
def test_equals_the_equation(shape, temperature, alpha, beta):
    generator = torch.Generator().manual_seed(shape[1])
    student, teacher = 3 * torch.randn(2, *shape, generator=generator)
    labels = torch.arange(shape[0]) - int(shape[0] > 1)
    expected = by_hand(student, teacher, labels, alpha, beta, temperature)
    actual = dkd(student, teacher, labels, alpha, beta, temperature).item()
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_kd_is_the_case_of_beta_one_minus_the_teachers_confidence():
    student, teacher = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(0))
    beta = 1 - (teacher / 4).softmax(1)[0, 2].item()
    assert dkd(student, teacher, tensor([2]), 1.0, beta).item() == pytest.approx(kd(student, teacher).item(), rel=1e-5)


def test_zero_with_zero_gradient_where_the_student_equals_the_teacher():
    teacher = torch.randn(4, 10)
    student = teacher.clone().requires_grad_()
    loss = dkd(student, teacher, torch.arange(4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5) and student.grad.abs().max() < 1e-5


def test_a_sure_teacher_stays_finite():
    student = torch.zeros(1, 3, requires_grad=True)
    loss = dkd(student, tensor([[200.0, 0.0, 0.0]]), tensor([0]), temperature=1)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="dkd compares the classes other than the true one"):
        dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
