import numpy
import pytest
import torch
from torch import tensor

from distill.objectives.dist import dist, pearson


def by_hand(student, teacher, beta, gamma, temperature):
    p_s, p_t = ((z.double() / temperature).softmax(1).numpy() for z in (student, teacher))
    rows = numpy.mean([numpy.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t)])
    columns = numpy.mean([numpy.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T)])
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


def test_correlation_on_paper():
    a, b = tensor([[1.0, 2.0, 3.0]]), tensor([[1.0, 3.0, 2.0]])
    assert pearson(a, b, dim=1).item() == pytest.approx(0.5)
    assert pearson(a, -2 * a + 7, dim=1).item() == pytest.approx(-1)
    assert pearson(a, torch.ones(1, 3), dim=1).item() == 0


@pytest.mark.parametrize("shape", [(2, 3), (5, 10), (6, 100)])
@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.5, 4.0)])
def test_equals_the_equation(shape, beta, gamma, temperature):
    student, teacher = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(shape[1]))
    expected = by_hand(student, teacher, beta, gamma, temperature)
    assert dist(student, teacher, beta, gamma, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_zero_where_the_student_equals_the_teacher():
    teacher = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    loss = dist(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5) and student.grad.abs().max() < 1e-5


def test_a_batch_of_one_has_no_relations_between_samples():
    student = torch.randn(1, 10, requires_grad=True)
    assert dist(student, student.detach(), beta=0, gamma=2.0, temperature=3.0).item() == pytest.approx(18)
