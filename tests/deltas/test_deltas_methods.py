"""Each method against its equation, on every kind of layer; the cheap way against the definition."""

import pytest
import torch
from deltas_models import CONVS, conv_case
from torch import nn
from torch.nn import functional as F

from distill.deltas.attach import attach, merge
from distill.deltas.base import WeightDelta
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.dora import DoRA
from distill.deltas.halrp import HALRP
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift


def low_rank_reference(weight: torch.Tensor, delta: LowRank) -> torch.Tensor:
    """The equation, entry by entry."""
    changed = weight.clone()
    groups, rank, _ = delta.A.shape
    rows = weight.shape[0] // groups
    for o in range(weight.shape[0]):
        for r in range(rank):
            changed[o] += delta.scale * delta.B[o // rows, o % rows, r] * delta.A[o // rows, r].view(weight[o].shape)
    return changed


@pytest.mark.parametrize("kind", CONVS)
def test_low_rank_is_its_equation(kind: str) -> None:
    model, x, delta = conv_case(kind, LowRank.Settings(rank=2, alpha=3))
    layer = model[0]
    assert delta.scale == 1.5
    changed = low_rank_reference(layer.parametrizations.weight.original, delta)
    cheap = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer.weight, changed)
        plain = (
            F.linear(x, changed, layer.bias)
            if isinstance(layer, nn.Linear)
            else layer._conv_forward(x, changed, layer.bias)
        )
        torch.testing.assert_close(cheap, plain)
        torch.testing.assert_close(model(x), plain)
        merge(model)
        torch.testing.assert_close(model(x), plain)


@pytest.mark.parametrize("kind", ["plain", "grouped", "depthwise", "strided", "linear"])
def test_low_rank_gradients_by_finite_differences(kind: str) -> None:
    model, x, delta = conv_case(kind, LowRank.Settings(rank=2, alpha=3))
    parameters = tuple(delta.parameters())

    def run(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return model(x)

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_low_rank_output_while_training_is_bit_equal_to_the_merged_layer() -> None:
    model, x, _ = conv_case("plain", LowRank.Settings(rank=2))
    y = model(x).detach()
    merge(model)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("method", [LowRank, DoRA, HALRP])
def test_thin_deltas_train_without_the_full_weight_gradient(method: type[WeightDelta]) -> None:
    model, x, _ = conv_case("plain", method.Settings(rank=2))
    y = model(x)  # older torch lets the graph go with it
    nodes, names = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    assert "_ProjectedBackward" in names and "ConvolutionBackward0" not in names


def test_low_rank_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[0].weight)
    delta = attach(model, [LowRank.Settings(rank=1, alpha=2)])[0].delta
    with torch.no_grad():
        delta.A.copy_(torch.tensor([[[1.0, 2.0, 3.0]]]))
        delta.B.copy_(torch.tensor([[[1.0], [0.0], [-1.0]]]))
        expected = torch.tensor([[3.0, 4.0, 6.0], [0.0, 1.0, 0.0], [-2.0, -4.0, -5.0]])
        assert torch.equal(model[0].weight, expected)


def test_low_rank_dense_where_it_would_be_oversized() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 32, 3))
    sites = attach(model, [LowRank.Settings(rank=1, oversized="dense")])
    assert [[tuple(p.shape) for p in site.delta.parameters()] for site in sites] == [
        [(8, 1, 3, 3)],
        [(1, 1, 72), (1, 32, 1)],
    ]
    assert [
        site.name
        for site in attach(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 32, 3)), [LowRank.Settings()])
    ] == ["1"]


@pytest.mark.parametrize("kind", CONVS)
def test_scale_shift_is_its_equation(kind: str) -> None:
    model, x, delta = conv_case(kind, ScaleShift.Settings())
    layer = model[0]
    with torch.no_grad():
        changed = model(x)
        merge(model)
        torch.testing.assert_close(model(x), changed)
        torch.manual_seed(0)
        plain = nn.Sequential(CONVS[kind]()).double()
        y = plain(x)
        axes = (-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1)
        y = y * (1 + delta.scale).view(axes)
        if plain[0].bias is not None:
            y = y + delta.shift.view(axes)
        else:
            assert delta.shift is None
        torch.testing.assert_close(changed, y)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda c: nn.GroupNorm(2, c)])
def test_scale_shift_and_bias_on_norms(norm) -> None:
    x = torch.randn(2, 4, 5, 5)
    plain = norm(4).eval()
    model = nn.Sequential(norm(4).eval())
    scale, bias = (site.delta for site in attach(model, [ScaleShift.Settings(kinds="norm"), Bias.Settings()]))
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 0, -1, 0.5]))
        scale.shift.fill_(2)
        bias.shift.fill_(3)
        expected = plain(x) * torch.tensor([2.0, 1, 0, 1.5]).view(-1, 1, 1) + 5
    torch.testing.assert_close(model(x), expected)


def test_dense_and_bias_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    dense, bias = (site.delta for site in attach(model, [Dense.Settings(), Bias.Settings()]))
    with torch.no_grad():
        dense.D.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        bias.shift.copy_(torch.tensor([10.0, 20.0]))
    assert model(torch.tensor([[1.0, 1.0]])).tolist() == [[13.0, 27.0]]
