"""IA3 and norm affine against their equations; penalties of dense."""

import pytest
import torch
from deltas_models import CONVS, conv_case
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.dense import Dense, nuclear_norm
from distill.deltas.ia3 import IA3
from distill.deltas.norm_affine import NormAffine


@pytest.mark.parametrize("side", ["output", "input"])
@pytest.mark.parametrize("kind", CONVS)
def test_ia3_scales_what_goes_in_or_comes_out(kind: str, side: str) -> None:
    model, x, delta = conv_case(kind, IA3.Settings(side=side))
    changed = model(x)
    torch.manual_seed(0)
    plain = nn.Sequential(CONVS[kind]()).double()
    axes = (-1,) if isinstance(plain[0], nn.Linear) else (-1, 1, 1)
    factors = (1 + delta.scale).view(axes)
    torch.testing.assert_close(changed, plain(x) * factors if side == "output" else plain(x * factors))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c)])
def test_norm_affine_adds_to_both(norm) -> None:
    x = torch.randn(2, 4, 5, 5)
    model = nn.Sequential(norm(4).eval())
    with torch.no_grad():
        model[0].weight[1] = 0  # can move all the same
        standardized = model[0](x) - 0
        delta = attach(model, [NormAffine.Settings()])[0].delta
        delta.scale.copy_(torch.tensor([1.0, 0, -1, 0.5]))
        delta.shift.fill_(2)
        expected = standardized * torch.tensor([2.0, 1, 0, 1.5]).view(-1, 1, 1) + 2
        torch.testing.assert_close(model(x), expected)
        delta.scale[1] = 3
        assert (model(x)[:, 1].std() > 2).item()


def test_dense_penalties_by_hand() -> None:
    delta = Dense(Dense.Settings(l1=1, l2=10, nuclear=100), nn.Linear(2, 2))
    with torch.no_grad():
        delta.D.copy_(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
    assert delta.penalty().item() == pytest.approx(7 + 125 + 700, rel=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_nuclear_norm_and_its_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    D = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(nuclear_norm(D, 1e-8), torch.linalg.matrix_norm(D, "nuc"))
    torch.testing.assert_close(
        torch.autograd.grad(nuclear_norm(D, 1e-8), D), torch.autograd.grad(torch.linalg.matrix_norm(D, "nuc"), D)
    )
    zero = torch.zeros(shape, requires_grad=True)
    nuclear_norm(zero).backward()
    assert not zero.grad.any()  # type: ignore[union-attr]
