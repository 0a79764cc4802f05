"""What the thin gradients have to know about their layer's surroundings. That they are right is in the contract."""

import pytest
import torch
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.base import DeltaSettings
from distill.deltas.dora import DoRA
from distill.deltas.halrp import HALRP
from distill.deltas.projected import changed_weight, factor, plus_product

SCALED = [DoRA.Settings(rank=2), HALRP.Settings(rank=2)]


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(model(x).square().sum(), [x, *(p for p in model.parameters() if p.requires_grad)])


@pytest.mark.parametrize("settings", SCALED)
def test_an_activation_that_overwrites_the_output(settings: DeltaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """SiLU in place: its gradient times what it wrote is not its gradient times what was there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(8 * 25, 6))
    model = model.double()
    for site in attach(model, [settings]):
        for parameter in site.delta.parameters():
            nn.init.normal_(parameter)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    cheap = gradients(model, x)
    monkeypatch.setattr(settings.component, "output", lambda self, layer, x: None)
    for got, expected in zip(cheap, gradients(model, x), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("settings", SCALED)
def test_factors_of_zero(settings: DeltaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row or column scaled to nothing still has its gradient, and can come back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9)).double()
    delta = attach(model, [settings])[0].delta
    with torch.no_grad():
        for parameter in delta.parameters():
            nn.init.normal_(parameter)
            if parameter.ndim == 1:
                parameter[:2] = torch.tensor([-1.0, -1.0 - 1e-6])
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    cheap = gradients(model, x)
    monkeypatch.setattr(settings.component, "output", lambda self, layer, x: None)
    for got, expected in zip(cheap, gradients(model, x), strict=True):
        assert expected.all()
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 3, 2)], ids=["plain", "channels_last", "other"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_changed_weight_in_every_order_of_memory(order: tuple[int, ...], groups: int) -> None:
    """With the strides of W, and of the value that its definition has."""
    torch.manual_seed(0)
    out, inner, height, width, rank = 6, 4, 3, 2, 2
    weight = torch.randn(out, inner, height, width, dtype=torch.float64)
    strided = weight.permute(order).contiguous().permute(*(order.index(axis) for axis in range(4)))
    A = torch.randn(groups, rank, inner * height * width, dtype=torch.float64)
    B = torch.randn(groups, out // groups, rank, dtype=torch.float64)
    rows, columns = torch.rand(out).double() + 0.5, torch.rand(inner * groups).double() + 0.5
    changed = changed_weight(strided, A, B, rows, columns, torch.float32)
    per_group = columns.view(groups, 1, inner).expand(-1, out // groups, -1).reshape(out, inner, 1, 1)
    expected = weight * rows.view(-1, 1, 1, 1) * per_group + (B @ A).view(weight.shape)
    assert changed.dtype == torch.float32 and changed.stride() == strided.stride()
    torch.testing.assert_close(changed, expected.float())


@pytest.mark.parametrize("shape", [(6, 4, 1, 1), (6, 1, 1, 1), (6, 1, 3, 3), (6, 4, 3, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_product_is_added_without_a_copy(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """It has the strides of W at once, also those of axes of size 1."""
    weight = torch.nn.Conv2d(shape[1], shape[0], shape[2:]).to(memory_format=layout).weight.detach()
    A, B = torch.randn(1, 2, weight[0].numel()), torch.randn(1, shape[0], 2)
    changed = plus_product(weight, A, B)
    assert changed.stride() == weight.stride()
    torch.testing.assert_close(changed, weight + (B @ A).view(shape))


def test_factor_by_hand() -> None:
    offset = torch.tensor([0.0, 0.5, -3.0, -1.0, -1.0001, -0.9999], requires_grad=True)
    y = factor(offset)
    assert y.tolist() == [1, 1.5, -2, 2**-10, -(2**-10), 2**-10]
    y.sum().backward()
    assert offset.grad.tolist() == [1] * 6  # type: ignore[union-attr]
