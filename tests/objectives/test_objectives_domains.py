"""Objectives of an unlabeled target domain: by hand, against plain references, and which samples they read."""

import math

import pytest
import torch
from torch import nn

from augment.base import Registry
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.bnm import bnm
from distill.objectives.coral import coral
from distill.objectives.information_max import information_max
from distill.objectives.mcc import mcc
from distill.objectives.mmd import mmd
from distill.objectives.self_training import imbalance, self_training

SHAPES = FeatureShapes(3, 4)
KNOWN = {
    name: settings
    for name, settings in Registry("distill.objectives", "Objective").known().items()
    if settings.component.domain != "all"
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return KNOWN[name].component(KNOWN[name](**arguments), SHAPES, SHAPES)


def test_there_are_eight_of_them():
    assert KNOWN.keys() == {"self_training", "information_max", "mcc", "bnm", "mmd", "coral", "dann", "cdan"}


@pytest.mark.parametrize("name", [name for name in KNOWN if KNOWN[name].component.domain == "target"])
def test_they_read_the_target_alone(name):
    term, logits, teacher = build(name), random(6, 3).requires_grad_(), random(6, 3, seed=1) * 9
    domains = torch.tensor([0, 1, 0, 1, 0, 1])
    both = term(Features(logits=logits), Features(logits=teacher), Targets(torch.full((6,), -1), domains=domains))
    both.backward()
    assert not logits.grad[::2].any() and logits.grad[1::2].any()
    rows = Features(logits=logits[1::2]), Features(logits=teacher[1::2]), Targets(torch.full((3,), -1))
    torch.testing.assert_close(term(*rows), both, msg="one domain: all samples")
    none = Targets(torch.tensor([0, 1, 2]), domains=torch.zeros(3, dtype=torch.int64))
    assert term(Features(logits=logits[:3]), Features(logits=teacher[:3]), none).item() == 0


@pytest.mark.parametrize("name", [name for name in KNOWN if KNOWN[name].component.domain == "both"])
def test_without_two_domains_they_have_nothing_to_compare(name):
    with pytest.raises(ValueError, match=f"{name} compares two domains"):
        build(name)(Features(random(4, 3), random(4, 4)), None, Targets(torch.full((4,), -1)))


def test_self_training_counts_every_target_sample_but_learns_from_sure_ones():
    teacher = torch.tensor([[4.0, 0, 0], [0.2, 0, 0], [0, 0, 4.0], [9.0, 0, 0]])
    student = random(4, 3)
    target = torch.tensor([True, True, True, False])
    expected = -(student.log_softmax(1)[0, 0] + student.log_softmax(1)[2, 2]) / 3
    torch.testing.assert_close(self_training(student, teacher, target, 0.9), expected)
    q = teacher.softmax(1)
    soft = -(q * student.log_softmax(1)).sum(1)
    torch.testing.assert_close(self_training(student, teacher, target, 0.0, soft=True), soft[:3].mean())


def test_rows_of_the_source_that_the_teacher_did_not_compute_do_not_matter():
    teacher = torch.tensor([[math.nan] * 3, [4.0, 0, 0]])
    assert self_training(random(2, 3), teacher, torch.tensor([False, True])).isfinite()
    assert self_training(random(2, 3), teacher, torch.tensor([True, True])).isnan()


def test_the_balance_is_zero_at_the_prior_which_is_that_of_the_source():
    sure = torch.tensor([[40.0, 0, 0], [40.0, 0, 0], [0, 40.0, 0], [0, 0, 40.0]])
    assert imbalance(sure, torch.tensor([0.5, 0.25, 0.25])).item() == pytest.approx(0, abs=1e-6)
    assert imbalance(sure, torch.full((3,), 1 / 3)).item() == pytest.approx(
        sum(math.log(1 / 3 / p) / 3 for p in (0.5, 0.25, 0.25)), rel=1e-5
    )
    term = build("self_training")
    term.remember(torch.tensor([0, 0, 1, 2, -1, -1]))
    assert term.prior_K.tolist() == [0.5, 0.25, 0.25]
    term.remember(torch.tensor([-1, -1]))
    uniform = build("self_training", prior="uniform")
    uniform.remember(torch.tensor([0, 0]))
    assert uniform.prior_K.tolist() == pytest.approx([1 / 3] * 3)


def test_information_max_by_hand():
    logits = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    p = torch.tensor([0.75, 0.25])
    expected = math.log(2) / 2 + float((p * p.log()).sum())
    assert information_max(logits).item() == pytest.approx(expected, rel=1e-5)
    assert information_max(logits, 0).item() == pytest.approx(math.log(2) / 2, rel=1e-5)


def test_mcc_against_a_plain_reference():
    logits = random(5, 3)
    p = (logits / 2.5).softmax(1)
    w = [1 + math.exp(float((row * row.log()).sum())) for row in p]
    w = [5 * each / sum(w) for each in w]
    c = torch.zeros(3, 3)
    for row, weight in zip(p, w):
        c += weight * row[:, None] * row[None]
    c = c / c.sum(1, keepdim=True)
    torch.testing.assert_close(mcc(logits), (c.sum() - c.trace()) / 3)


def test_bnm_is_the_sum_of_singular_values():
    logits = random(5, 3)
    p = logits.softmax(1)
    expected = -torch.linalg.eigvalsh((p.T @ p).double()).sqrt()
    torch.testing.assert_close(bnm(logits).double(), expected.sum() / 5, rtol=1e-4, atol=1e-6)


def test_mmd_against_a_plain_reference():
    s, t = random(3, 2), random(4, 2, seed=1)
    both = [*s, *t]
    squares = [[float((a - b).square().sum()) for b in both] for a in both]
    mean = sum(map(sum, squares)) / (7 * 6)

    def k(i: int, j: int) -> float:
        return sum(math.exp(-squares[i][j] / (2 * a * mean)) for a in (0.125, 0.25, 0.5, 1, 2)) / 5

    of_s = sum(k(i, j) for i in range(3) for j in range(3) if i != j) / 6
    of_t = sum(k(i, j) for i in range(3, 7) for j in range(3, 7) if i != j) / 12
    between = sum(k(i, j) for i in range(3) for j in range(3, 7)) / 12
    assert mmd(s, t).item() == pytest.approx(of_s + of_t - 2 * between, abs=1e-6)
    far = mmd(s, t + 5).item()
    assert far > mmd(s, t).item()


def test_coral_is_zero_for_equal_covariances_whatever_the_means():
    s = random(6, 3)
    assert coral(s, s + 7).item() == pytest.approx(0, abs=1e-6)
    expected = (torch.cov(s.T) - torch.cov((2 * s).T)).square().sum() / 36
    torch.testing.assert_close(coral(s, 2 * s), expected)


@pytest.mark.parametrize("name", ["dann", "cdan"])
def test_the_gradient_of_the_features_is_reversed_and_grows(name):
    term, pooled = build(name, hidden=8), random(4, 4).requires_grad_()
    batch = Targets(torch.full((4,), -1), domains=torch.tensor([0, 1, 0, 1]))
    gradients = []
    for updates in (0, 999):
        term.updates.fill_(updates)
        pooled.grad = None
        term(Features(random(4, 3), pooled), None, batch).backward()
        gradients.append(pooled.grad.clone())
        factor = 2 / (1 + math.exp(-(updates + 1) / 1000)) - 1
    assert gradients[1].norm() / gradients[0].norm() == pytest.approx(
        factor / (2 / (1 + math.exp(-1 / 1000)) - 1), rel=1e-3
    )
    before = term(Features(random(4, 3), pooled), None, batch)
    moved = pooled.detach() - 0.1 * gradients[1] / gradients[1].norm()
    assert term(Features(random(4, 3), moved), None, batch) > before, "a step against it confuses the discriminator"
    assert "updates" in term.state_dict(), "so that a resumed fit is exact"


def test_cdan_weighs_sure_samples_and_maps_wide_products():
    term = build("cdan", hidden=8, largest=8)
    assert term.map_DM.shape == (4, 8) and term.discriminator[0].in_features == 8
    plain = build("cdan", hidden=8)
    assert plain.map_DM is None and plain.discriminator[0].in_features == 12
