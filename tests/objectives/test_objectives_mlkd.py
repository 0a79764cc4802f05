import pytest
import torch
from torch import tensor

from distill.objectives.kd import kd
from distill.objectives.mlkd import mlkd


def by_hand(student, teacher, temperatures):
    total = 0.0
    for temperature in temperatures:
        p_s, p_t = ((z.double() / temperature).softmax(1) for z in (student, teacher))
        batch, classes = p_s.shape
        by_class = sum(
            ((p_s[:, j] * p_s[:, k]).sum() - (p_t[:, j] * p_t[:, k]).sum()) ** 2
            for j in range(classes)
            for k in range(classes)
        )
        by_sample = sum(
            ((p_s[a] * p_s[b]).sum() - (p_t[a] * p_t[b]).sum()) ** 2 for a in range(batch) for b in range(batch)
        )
        total += kd(student, teacher, temperature).item() + by_class.item() / classes + by_sample.item() / batch
    return total / len(temperatures)


def test_one_sample_on_paper():
    """p_s = (1/2, 1/2), p_t = (3/4, 1/4): outer products and squared lengths, beside KD."""
    student, teacher = torch.zeros(1, 2), tensor([[torch.log(tensor(3.0)), 0.0]])
    classes = ((1 / 4 - 9 / 16) ** 2 + 2 * (1 / 4 - 3 / 16) ** 2 + (1 / 4 - 1 / 16) ** 2) / 2
    samples = (1 / 2 - 10 / 16) ** 2
    expected = kd(student, teacher, 1.0).item() + classes + samples
    assert mlkd(student, teacher, (1.0,)).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 2), (4, 6)])
@pytest.mark.parametrize("temperatures", [(2.0,), (2.0, 3.0, 4.0, 5.0, 6.0)])
def test_equals_the_equation(shape, temperatures):
    student, teacher = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(shape[1]))
    assert mlkd(student, teacher, temperatures).item() == pytest.approx(
        by_hand(student, teacher, temperatures), rel=1e-5
    )


def test_zero_with_zero_gradient_where_the_student_equals_the_teacher():
    teacher = torch.randn(4, 10)
    student = teacher.clone().requires_grad_()
    loss = mlkd(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and student.grad.abs().max() < 1e-6
