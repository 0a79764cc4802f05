"""Weights of samples: what every objective does with them, or that it refuses them. Found by discovery."""

from operator import itemgetter

import pytest
import torch
from test_objectives_contract import FAMILY, STUDENT, TEACHER, build, changed, features, memory, tensors

from distill.models.features import Features
from distill.objectives.base import Targets
from distill.objectives.ce import cross_entropy
from distill.objectives.kd import kd
from distill.objectives.ranks import mean_where, weighed

WEIGHING = [name for name, settings in FAMILY.known().items() if settings.component.weighs_samples]
every = pytest.mark.parametrize("name", WEIGHING)
LABELS = torch.tensor([0, 1, 2, -1, 3, 4, -1, 5])


def loss(name: str, weights: torch.Tensor | None, student: Features | None = None) -> torch.Tensor:
    batch = Targets(LABELS, torch.arange(8), weights=weights, **memory())
    return build(name)(student or features(STUDENT), features(TEACHER), batch)


RELATIONS = {"rkd", "pkt", "cc", "sp", "mlkd", "dist", "simclr", "moco", "barlow_twins", "vicreg", "cassle"} | {
    name for name, settings in FAMILY.known().items() if settings.component.domain != "all"
}
"""They compare samples with each other, and have no losses of single ones; or they read all views in one call; or they
compare or adapt domains, whose samples are one distribution to them."""
OTHERS_IN_IT = {"icd", "rrd", "crd", "reviewkd", "byol", "er_ace", "der"}
"""A sample's own loss looks at the others: negatives, the queue, the bank's normalizer, a batch norm's statistics, the
classes in the batch, the samples of the memory that are averaged over."""


def test_all_but_the_objectives_on_relations_take_weights() -> None:
    assert set(FAMILY.known()) - set(WEIGHING) == RELATIONS


@pytest.mark.parametrize("name", sorted(RELATIONS))
def test_an_objective_on_relations_refuses_weights(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} compares samples with each other"):
        loss(name, torch.ones(8))


@every
def test_weights_of_one_change_nothing_and_the_loss_is_linear_in_them(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 8, generator=generator)
    plain = loss(name, None)
    torch.testing.assert_close(loss(name, torch.ones(8)), plain)
    both = loss(name, first) + loss(name, second)
    torch.testing.assert_close(loss(name, first + second), both, rtol=1e-4, atol=1e-5)
    assert loss(name, first).item() != pytest.approx(plain.item() * first.mean().item(), rel=1e-4)


@every
def test_each_weight_falls_on_its_own_sample(name: str) -> None:
    alone = torch.stack([loss(name, weights) for weights in torch.eye(8)])
    torch.testing.assert_close(alone.sum(), loss(name, None), rtol=1e-4, atol=1e-5)
    if name in OTHERS_IN_IT | {"deit"}:  # deit's two parts are means over different samples
        return
    counted = 6 if name in {"ce", "dkd", "nkd"} else 8  # samples that are averaged over: the labeled ones, or all
    for row in (0, 5):
        rows = slice(row, row + 1)
        student, teacher = (changed(of, itemgetter(rows)) for of in (features(STUDENT), features(TEACHER)))
        own = build(name)(student, teacher, Targets(LABELS[rows], torch.tensor([row])))
        torch.testing.assert_close(alone[row] * counted, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in WEIGHING if name not in OTHERS_IN_IT])
def test_weights_of_zero_and_one_are_the_part_of_the_batch(name: str) -> None:
    rows = torch.tensor([0, 1, 4, 7])  # all of them with a label, for the means over labeled samples
    weights = torch.zeros(8).index_fill(0, rows, 1.0)
    labeled = name in {"ce", "dkd", "nkd", "deit"}
    labels = LABELS.where(LABELS >= 0, 9) if name == "deit" else LABELS
    student, teacher = (changed(of, itemgetter(rows)) for of in (features(STUDENT), features(TEACHER)))
    part = build(name)(student, teacher, Targets(labels[rows], rows))
    whole = build(name)(features(STUDENT), features(TEACHER), Targets(labels, torch.arange(8), weights=weights))
    counted = 6 if labeled and name != "deit" else 8
    torch.testing.assert_close(whole * counted / 4, part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in WEIGHING if name not in {"icd", "reviewkd", "byol"}])
def test_a_sample_of_weight_zero_gives_no_gradient(name: str) -> None:
    student = features(STUDENT)
    weights = torch.ones(8)
    weights[2] = 0
    loss(name, weights, student).backward()
    reached = [value.grad for value in tensors(student).values() if value.grad is not None]
    assert reached and all(gradient[2].abs().sum() == 0 for gradient in reached)
    assert any(gradient[1].abs().sum() > 0 for gradient in reached)


def test_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, -1])
    weights = torch.tensor([2.0, 0.5, 7.0])
    actual = cross_entropy(logits, labels, weights_B=weights)
    assert actual.item() == pytest.approx((2 * torch.tensor(2.0).log().item() + 0.5 * 100) / 2)
    teacher = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
    each = [kd(logits[row : row + 1], teacher[row : row + 1], 2.0) for row in range(3)]
    expected = sum(weight * value for weight, value in zip(weights, each)) / 3
    torch.testing.assert_close(kd(logits, teacher, 2.0, weights_B=weights), expected)
    assert mean_where(torch.tensor([1.0, 3.0]), torch.tensor([True, False]), torch.tensor([4.0, 9.0])).item() == 4


def test_weights_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights of shape \(1,\) .* losses of shape \(8,\)"):
        weighed(torch.zeros(8), torch.ones(1))
