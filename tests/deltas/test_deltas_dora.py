"""DoRA against its equation."""

import pytest
import torch
from deltas_models import CONVS, conv_case
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.dora import DoRA


@pytest.mark.parametrize("kind", CONVS)
def test_it_is_its_equation(kind: str) -> None:
    if kind == "depthwise":
        pytest.skip("larger than the layer at rank 2")
    model, _, delta = conv_case(kind, DoRA.Settings(rank=2, alpha=3))
    weight = model[0].parametrizations.weight.original
    groups, rows = len(delta.A), len(weight) // len(delta.A)
    with torch.no_grad():
        for o in range(len(weight)):
            V = weight[o].flatten().clone()
            for r in range(2):
                V += 1.5 * delta.B[o // rows, o % rows, r] * delta.A[o // rows, r]
            m = (1 + delta.magnitude[o]) * weight[o].square().sum().sqrt()
            torch.testing.assert_close(model[0].weight[o].flatten(), m * V / V.square().sum().sqrt())
    assert groups == getattr(model[0], "groups", 1)


def test_by_hand_and_a_row_of_zeros() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()[0, :2] = torch.tensor([3.0, 4.0])
        delta = attach(model, [DoRA.Settings(rank=1)])[0].delta
        assert torch.equal(model[0].weight, model[0].parametrizations.weight.original)
        delta.A.copy_(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))
        delta.B.fill_(-3.0)
        delta.magnitude[0] = 1.0
        # The first row of V is (0, 4, 0, 0): it gets the length 5, doubled. Rows of zeros stay.
        torch.testing.assert_close(model[0].weight, torch.tensor([[0.0, 10, 0, 0], *[[0.0] * 4] * 3]))


def test_cut_at_the_rank_of_the_change_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6))
    free = model[0].weight.detach() + torch.randn(6, 2) @ torch.randn(2, 8)
    cut = DoRA.cut(model[0], free, 2)
    attach(model, [DoRA.Settings(rank=2)])[0].delta.load_state_dict(cut)
    torch.testing.assert_close(model[0].weight, free, rtol=1e-4, atol=1e-4)
