"""The delta rule against its equation, one step after another, and what its β means."""

import pytest
import torch
from deltas_models import CONVS, conv_case
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.delta_rule import DeltaRule


def by_steps(weight: torch.Tensor, delta: DeltaRule) -> torch.Tensor:
    groups = len(delta.k)
    blocks = []
    for g, W in enumerate(weight.reshape(groups, len(weight) // groups, -1)):
        for k, v, beta in zip(delta.k[g], delta.v[g], delta.beta[g]):
            k = k / k.norm()
            W = W + beta * torch.outer(k, v - k @ W)
        blocks.append(W)
    return torch.cat(blocks).view(weight.shape)


@pytest.mark.parametrize("kind", CONVS)
def test_it_is_its_equation(kind: str) -> None:
    if kind == "depthwise":
        pytest.skip("larger than the layer at rank 2")
    model, _, delta = conv_case(kind, DeltaRule.Settings(rank=2))
    with torch.no_grad():
        torch.testing.assert_close(model[0].weight, by_steps(model[0].parametrizations.weight.original, delta))


def test_what_beta_means() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    weight = model[0].weight.detach().clone()
    delta = attach(model, [DeltaRule.Settings(rank=1)])[0].delta
    assert isinstance(delta, DeltaRule)
    k = nn.functional.normalize(delta.k[0, 0].detach(), dim=0)
    with torch.no_grad():
        assert torch.equal(model[0].weight, weight), "0: the identity"
        delta.v.normal_()
        delta.beta.fill_(1)
        torch.testing.assert_close(k @ model[0].weight, delta.v[0, 0])  # 1: a projection
        delta.v.zero_()
        delta.beta.fill_(2)
        reflected = model[0].weight
        torch.testing.assert_close(reflected.T @ reflected, weight.T @ weight)  # 2: lengths stay
        torch.testing.assert_close(k @ reflected, -(k @ weight))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(4, 8, 3, groups=2)])
def test_cut_at_full_rank_is_exact(layer: nn.Module) -> None:
    torch.manual_seed(0)
    free = torch.randn_like(layer.weight)
    rank = len(layer.weight) // getattr(layer, "groups", 1)
    delta = DeltaRule(DeltaRule.Settings(rank=rank), layer)
    delta.load_state_dict(DeltaRule.cut(layer, free, rank))
    torch.testing.assert_close(delta(layer.weight), free, rtol=1e-4, atol=1e-4)
