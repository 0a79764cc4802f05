import math

import pytest
import torch
from torch import tensor

from distill.objectives.nkd import nkd


def by_hand(student, teacher, labels, gamma, temperature):
    losses = []
    for z_s, z_t, y in zip(student.double(), teacher.double(), labels.tolist()):
        if y < 0:
            continue
        p_s, p_t = z_s.softmax(0)[y].item(), z_t.softmax(0)[y].item()
        rest = [k for k in range(len(z_s)) if k != y]
        q_s, q_t = (z_s[rest] / temperature).softmax(0), (z_t[rest] / temperature).softmax(0)
        others = -sum(t * math.log(s) for s, t in zip(q_s.tolist(), q_t.tolist()))
        losses.append(-p_t * math.log(p_s) + gamma * temperature**2 * others)
    return sum(losses) / len(losses)


def test_one_sample_on_paper():
    """Uniform over three: 1/2 of log 3 for the target, and log 2 for the two others."""
    actual = nkd(torch.zeros(1, 3), tensor([[math.log(2.0), 0.0, 0.0]]), tensor([0]), gamma=1.5)
    assert actual.item() == pytest.approx(0.5 * math.log(3) + 1.5 * math.log(2))


@pytest.mark.parametrize("shape", [(2, 2), (5, 10), (3, 100)])
@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (1.0, 2.0)])
def test_equals_the_equation(shape, gamma, temperature):
    student, teacher = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(shape[1]))
    labels = torch.arange(shape[0]) - 1
    expected = by_hand(student, teacher, labels, gamma, temperature)
    assert nkd(student, teacher, labels, gamma, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_the_non_target_part_is_least_where_the_student_equals_the_teacher():
    teacher = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    rest = teacher.clone()
    rest.requires_grad_()
    labels = torch.arange(4)
    p_t = teacher.softmax(1).gather(1, labels[:, None])
    loss = nkd(rest, teacher, labels, gamma=1.0) + (p_t * rest.log_softmax(1).gather(1, labels[:, None])).mean()
    loss.backward()
    assert rest.grad.abs().max() < 1e-6
    q = teacher.scatter(1, labels[:, None], -torch.inf).softmax(1)
    assert loss.item() == pytest.approx(-(q * q.clamp(min=1e-30).log()).sum(1).mean().item(), rel=1e-5)
