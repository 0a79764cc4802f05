"""Objectives on relations between the samples of a batch: SP, RKD, PKT, CC, RRD."""

import math

import pytest
import torch
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.cc import cc, kernel
from distill.objectives.pkt import pkt
from distill.objectives.rkd import angles, distances, lengths, rkd
from distill.objectives.rrd import RRD, rrd
from distill.objectives.sp import sp


def rows(batch=6, widths=(4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, generator=generator) for width in widths]


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def smooth_l1(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


# --- SP -----------------------------------------------------------------------------------------------------------


def test_sp_on_paper():
    """Orthogonal samples have rows (1, 0), (0, 1); equal ones (1, 1)/√2 twice."""
    actual = sp(torch.eye(2), torch.ones(2, 3)).item()
    half = 1 / math.sqrt(2)
    assert actual == pytest.approx((2 * (1 - half) ** 2 + 2 * half**2) / 4)


def test_sp_equals_the_equation_and_takes_maps():
    student, teacher = rows(6, (2 * 3 * 3, 5))
    total = 0.0
    for i in range(6):
        similarities_s, similarities_t = (tensor([(x[i] @ x[j]).item() for j in range(6)]) for x in (student, teacher))
        total += ((similarities_s / similarities_s.norm() - similarities_t / similarities_t.norm()) ** 2).sum().item()
    assert sp(student.view(6, 2, 3, 3), teacher).item() == pytest.approx(total / 36, rel=1e-5)


def test_sp_is_zero_where_all_likenesses_agree():
    teacher = rows(6, (4, 5))[1]
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    student = (teacher @ rotation).requires_grad_()
    loss = sp(3 * student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10) and student.grad.abs().max() < 1e-6


# --- RKD ----------------------------------------------------------------------------------------------------------


def test_rkd_on_paper():
    """Three points at 0, 3, 4 on a line: distances 3, 4, 1 of mean 8/3; the middle angle is flat, the others are 0."""
    points = tensor([[0.0], [3.0], [4.0]])
    torch.testing.assert_close(distances(lengths(points)) * 8 / 3, tensor([[0.0, 3, 4], [3, 0, 1], [4, 1, 0]]))
    cosines = angles(lengths(points))
    assert cosines[1, 0, 2].item() == pytest.approx(-1) and cosines[0, 1, 2].item() == pytest.approx(1)


@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd_equals_the_equation(distance, angle):
    student, teacher = rows(5)

    def relations(x):
        pairs = {(i, j): (x[i] - x[j]).norm().item() for i in range(5) for j in range(5)}
        mean = sum(d for d in pairs.values() if d > 0) / sum(d > 0 for d in pairs.values())
        triples = {
            (i, j, k): cosine(x[j] - x[i], x[k] - x[i]) if i not in (j, k) else 0.0
            for i in range(5)
            for j in range(5)
            for k in range(5)
        }
        return {key: d / mean for key, d in pairs.items()}, triples

    (d_s, a_s), (d_t, a_t) = relations(student), relations(teacher)
    expected = distance * sum(smooth_l1(d_s[k] - d_t[k]) for k in d_s) / 25
    expected += angle * sum(smooth_l1(a_s[k] - a_t[k]) for k in a_s) / 125
    assert rkd(student, teacher, distance, angle).item() == pytest.approx(expected, rel=1e-5)


def test_rkds_angles_are_those_between_vectors_and_so_are_their_gradients():
    points = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    points[3], points[5] = points[2], 1e3  # two that coincide, one far away
    wanted = torch.randn(7, 7, 7, generator=torch.Generator().manual_seed(1))
    results = []
    for way in (lambda x: angles(lengths(x)), _angles_between_vectors):
        own = points.clone().requires_grad_()
        cosines = way(own)
        results.append((cosines.detach(), *torch.autograd.grad((cosines * wanted).sum(), own)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def _angles_between_vectors(points):
    edges = points[None] - points[:, None]
    length = edges.square().sum(2, keepdim=True)
    edges = (edges / length.where(length > 0, 1).sqrt()).masked_fill(length == 0, 0)
    return edges @ edges.transpose(1, 2)


def test_rkd_is_blind_to_turns_moves_and_sizes():
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    student = (3 * teacher @ rotation + 5).requires_grad_()
    loss = rkd(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4) and student.grad.abs().max() < 1e-3


def test_rkd_of_samples_that_coincide_is_finite():
    student = torch.ones(3, 4, requires_grad=True)
    rkd(student, torch.randn(3, 4)).backward()
    assert student.grad.isfinite().all()


# --- PKT ----------------------------------------------------------------------------------------------------------


def test_pkt_on_paper():
    """Two samples: opposite ones never pick each other, orthogonal ones with 1/3."""
    student, teacher = tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([[1.0], [-1.0]])
    expected = 2 * (1 * math.log(1 / (2 / 3))) / 4
    assert pkt(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_pkt_equals_the_equation():
    student, teacher = rows()

    def probabilities(x):
        kernels = [[(1 + cosine(a, b)) / 2 for b in x] for a in x]
        return [[k / sum(row) for k in row] for row in kernels]

    p_s, p_t = probabilities(student), probabilities(teacher)
    expected = sum(t * math.log(t / s) for r, q in zip(p_s, p_t) for s, t in zip(r, q)) / 36
    assert pkt(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert pkt(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-7)


# --- CC -----------------------------------------------------------------------------------------------------------


def test_cc_on_paper():
    """Orthogonal unit vectors: only the constant term off the diagonal; 1 + 0.8 + 0.32 on it."""
    expected = math.exp(-0.8) * tensor([[2.12, 1.0], [1.0, 2.12]])
    torch.testing.assert_close(kernel(3 * torch.eye(2)), expected)


@pytest.mark.parametrize("order", [1, 2, 8])
def test_cc_equals_the_equation_and_nears_the_gaussian(order):
    student, teacher = rows()

    def k(a, b):
        return math.exp(-0.8) * sum(0.8**p / math.factorial(p) * cosine(a, b) ** p for p in range(order + 1))

    expected = sum((k(a, b) - k(c, d)) ** 2 for a, c in zip(student, teacher) for b, d in zip(student, teacher)) / 36
    assert cc(student, teacher, order=order).item() == pytest.approx(expected, rel=1e-5)
    unit = torch.nn.functional.normalize(student)
    gaussian = (-0.4 * torch.cdist(unit, unit).square()).exp()
    assert (kernel(student, order=8) - gaussian).abs().max() < 1e-5
    assert cc(5 * teacher, teacher, order=order).item() == pytest.approx(0, abs=1e-10)


# --- RRD ----------------------------------------------------------------------------------------------------------


def test_rrd_on_paper():
    """A queue of two at right angles, the student at 45 degrees: it finds both alike, whatever the teacher says."""
    queue, student = torch.eye(2), tensor([[1.0, 1.0]])
    assert rrd(student, tensor([[5.0, 0.0]]), queue).item() == pytest.approx(math.log(2))
    actual = rrd(tensor([[2.0, 0.0]]), tensor([[1.0, 1.0]]), queue, None, 0.5, 0.02).item()
    assert actual == pytest.approx(math.log(1 + math.exp(2)) - 0.5 * 2)


def test_rrd_equals_the_equation():
    student, teacher = rows(3, (4, 4))
    queue = torch.nn.functional.normalize(rows(7, (4, 4), seed=1)[0])
    total = 0.0
    for s, t in zip(student, teacher):
        p_t = tensor([cosine(t, m) / 0.02 for m in queue]).double().softmax(0)
        log_p_s = tensor([cosine(s, m) / 0.1 for m in queue]).double().log_softmax(0)
        total -= (p_t * log_p_s).sum().item()
    assert rrd(student, teacher, queue).item() == pytest.approx(total / 3, rel=1e-5)
    longer = torch.cat([queue, torch.randn(5, 4)])
    assert rrd(student, teacher, longer, filled=7).item() == pytest.approx(total / 3, rel=1e-5)


def test_rrd_is_least_where_both_relate_alike():
    teacher = rows(3, (4, 4))[0]
    student, queue = teacher.clone().requires_grad_(), torch.nn.functional.normalize(rows(9, (4, 4), seed=1)[0])
    loss = rrd(student, teacher, queue, None, 0.1, 0.1)
    loss.backward()
    p = (torch.nn.functional.normalize(teacher) @ queue.T / 0.1).softmax(1)
    assert (
        loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-5) and student.grad.abs().max() < 1e-5
    )


def test_the_queue_holds_the_newest_and_goes_round():
    shapes = FeatureShapes(2, 3), FeatureShapes(2, 4)
    term = RRD(RRD.Settings(dim=4, queue=10), *shapes)
    batches = [torch.randn(4, 4) for _ in range(4)]
    for count, teacher in enumerate(batches, 1):
        term(Features(pooled=torch.randn(4, 3)), Features(pooled=teacher), Targets(torch.zeros(4, dtype=torch.long)))
        assert term.pushed == 4 * count
    held = torch.nn.functional.normalize(torch.cat(batches) @ term.projection.T)
    torch.testing.assert_close(term.queue, torch.cat([held[10:], held[6:10]]))
    assert "queue" in term.state_dict(), "a resumed run goes on with it"


def test_a_batch_longer_than_the_queue_leaves_its_end():
    term = RRD(RRD.Settings(dim=4, queue=3), FeatureShapes(2, 3), FeatureShapes(2, 4))
    teacher = torch.randn(5, 4)
    term(Features(pooled=torch.randn(5, 3)), Features(pooled=teacher), Targets(torch.zeros(5, dtype=torch.long)))
    torch.testing.assert_close(term.queue, torch.nn.functional.normalize(teacher[2:] @ term.projection.T))
