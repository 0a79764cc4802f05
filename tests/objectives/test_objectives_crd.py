import math

import pytest
import torch
from torch import tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.crd import CRD, nce

SHAPES = FeatureShapes(3, 4), FeatureShapes(3, 5)


def term(labels: torch.Tensor, **settings: float) -> CRD:
    torch.manual_seed(0)
    made = CRD(CRD.Settings(dim=3, negatives=50, **settings), *SHAPES)
    made.remember(labels)
    return made


def features(batch: int = 4, seed: int = 0) -> tuple[Features, Features]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(Features(pooled=torch.randn(batch, width, generator=generator)) for width in (4, 5))


def test_nce_on_paper():
    """h = 1/N everywhere and M = 2: the odds are 1 : 2."""
    third = torch.full((1,), 0.1)
    loss = nce(third.log(), third.log().expand(1, 2), tensor([[True, True]]), samples=10)
    assert loss.item() == pytest.approx(-math.log(1 / 3) - 2 * math.log(2 / 3))


def test_equals_the_equation():
    labels = tensor([0, 0, 1, 1, 2, 2, -1, -1])
    made, (student, teacher), index = term(labels), features(), tensor([0, 3, 6, 7])
    banks = made.teacher_bank.clone(), made.student_bank.clone()
    actual = made(student, teacher, Targets(labels[index], index))

    from augment.draws import Draws

    places = Draws(0, 0, "crd", tensor([0])).integers(0, 0, 8, (50,))[0].tolist()
    rows = made.student_projector(student.pooled), made.teacher_projector(teacher.pooled)
    total = 0.0
    for row, bank in zip(rows, banks):
        unit = row / row.norm(dim=1, keepdim=True)

        def likeness(i, j, unit=unit, bank=bank):
            return math.exp((unit[i] @ bank[j]).item() / 0.07)

        everything = [likeness(i, j) for i in range(4) for j in [index[i].item(), *places]]
        scale = 8 * sum(everything) / len(everything)
        for i in range(4):
            own, label = index[i].item(), labels[index[i]].item()
            counted = [j for j in places if j != own and (label == -1 or labels[j] != label)]
            noise = len(counted) / 8
            hit = likeness(i, own) / scale
            total -= math.log(hit / (hit + noise)) / 4
            total -= sum(math.log(noise / (likeness(i, j) / scale + noise)) for j in counted) / 4
    assert actual.item() == pytest.approx(total, rel=3e-6)


def test_banks_remember_what_was_seen_and_nothing_else():
    labels = torch.arange(8) % 3
    made, (student, teacher), index = term(labels, momentum=0.25), features(), tensor([1, 2, 5, 7])
    before = made.student_bank.clone()
    made(student, teacher, Targets(labels[index], index))
    unit = torch.nn.functional.normalize(made.student_projector(student.pooled))
    expected = torch.nn.functional.normalize(0.25 * before[index] + 0.75 * unit)
    torch.testing.assert_close(made.student_bank[index], expected)
    rest = [0, 3, 4, 6]
    assert made.student_bank[rest].equal(before[rest]) and made.steps == 1


def test_the_normalizer_is_set_once():
    labels = torch.arange(8) % 3
    made, index = term(labels), tensor([1, 2, 5, 7])
    made(*features(), Targets(labels[index], index))
    first = made.normalizer.clone()
    assert (first > 0).all()
    made(*features(seed=1), Targets(labels[index], index))
    assert made.normalizer.equal(first)


def test_a_state_goes_on_where_it_was():
    labels, index = torch.arange(8) % 3, tensor([1, 2, 5, 7])
    made = term(labels)
    made(*features(), Targets(labels[index], index))
    again = CRD(made.settings, *SHAPES)
    again.remember(labels)
    again.load_state_dict(made.state_dict())
    batch = Targets(labels[index], index)
    assert made(*features(seed=1), batch).equal(again(*features(seed=1), batch))


def test_a_batch_that_does_not_know_its_samples_is_refused():
    with pytest.raises(ValueError, match="index in the training split"):
        term(torch.arange(8))(*features(), Targets(torch.arange(4)))
