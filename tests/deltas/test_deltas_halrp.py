"""HALRP's form and closed forms against their equations."""

import pytest
import torch
from deltas_models import CONVS, conv_case
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.halrp import HALRP, closed_form


@pytest.mark.parametrize("kind", CONVS)
def test_it_is_its_equation(kind: str) -> None:
    model, _, delta = conv_case(kind, HALRP.Settings(rank=1))
    layer = model[0]
    weight = layer.parametrizations.weight.original
    groups = getattr(layer, "groups", 1)
    rows, columns = len(weight) // groups, weight.shape[1]
    with torch.no_grad():
        for o in range(len(weight)):
            g = o // rows
            for i in range(columns):
                expected = weight[o, i] * (1 + delta.R[o]) * (1 + delta.S[g * columns + i])
                expected = expected + delta.K2[g, o % rows] @ delta.K1[g, :, i]
                torch.testing.assert_close(layer.weight[o, i], expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_closed_forms_are_least_squares(groups: int) -> None:
    torch.manual_seed(0)
    weight, free = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64)
    R, S = closed_form(weight, free, groups)
    for j in range(4):
        torch.testing.assert_close(R[j], (free[j] * weight[j]).sum() / weight[j].square().sum())
    scaled = weight * R[:, None, None, None]
    half = 4 // groups
    for g in range(groups):
        for i in range(3):
            a, b = scaled[g * half : (g + 1) * half, i], free[g * half : (g + 1) * half, i]
            torch.testing.assert_close(S[3 * g + i], (a * b).sum() / a.square().sum())


def test_closed_forms_find_scales_again_and_leave_zeros_alone() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3)
    weight[2] = 0
    R, S = closed_form(weight, weight * 2)
    torch.testing.assert_close(R, torch.tensor([2.0, 2.0, 1.0, 2.0]))
    torch.testing.assert_close(S, torch.ones(3))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, groups=2)])
def test_cut_at_full_rank_is_exact_but_for_the_window(layer: nn.Module) -> None:
    torch.manual_seed(0)
    free = torch.randn_like(layer.weight)
    model = nn.Sequential(layer)
    full = min(layer.weight.shape[0] // getattr(layer, "groups", 1), layer.weight.shape[1])
    start = HALRP.cut(layer, free, full)
    with torch.no_grad():
        R, S = closed_form(layer.weight, free, getattr(layer, "groups", 1))
        rest = HALRP.change(layer, free)
        torch.testing.assert_close(start["K2"] @ start["K1"], rest)
        assert HALRP.window(layer) == layer.weight[0, 0].numel()
        if HALRP.window(layer) > 1:
            delta = attach(model, [HALRP.Settings(rank=1)])[0].delta
            delta.load_state_dict(HALRP.cut(layer, free, 1))
            torch.testing.assert_close(delta.R, R - 1)
            torch.testing.assert_close(delta.S, S - 1)


def test_penalty_by_hand() -> None:
    delta = HALRP(HALRP.Settings(rank=1, l1=0.5, l2=2.0), nn.Linear(4, 3))
    with torch.no_grad():
        delta.K1.fill_(-1)
        delta.K2.fill_(2)
        delta.R.fill_(3)
    assert delta.penalty().item() == 0.5 * (4 + 6) + 1.0 * (3 * 9 + 0 + 4 + 3 * 4)
