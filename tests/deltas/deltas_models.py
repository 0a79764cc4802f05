"""Random models, inputs, settings and changed deltas for the tests of deltas."""

from collections.abc import Callable

import timm
import torch
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach
from distill.deltas.base import DeltaSettings, WeightDelta
from distill.deltas.state import delta_state

CONVS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "pointwise": lambda: nn.Conv2d(6, 8, 1, bias=False),
    "strided": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(6, 8, 3, dilation=2, padding=2),
    "unpadded": lambda: nn.Conv2d(6, 8, 5, stride=2, dilation=2),
    "asymmetric": lambda: nn.Conv2d(6, 8, (1, 5), stride=(2, 1), padding=(0, 2)),
    "grouped": lambda: nn.Conv2d(12, 16, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 24, 5, padding=2, groups=6),
    "reflect": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(6, 8, 3, padding="same"),
    "linear": lambda: nn.Linear(6, 8),
    "linear_no_bias": lambda: nn.Linear(6, 8, bias=False),
}
SMALL = {"rank": 2, "density": 0.1}
"""Sizes that fit the small layers here, for the methods that have such a setting."""


def weight_deltas() -> dict[str, DeltaSettings]:
    """Settings of every weight delta there is, by type."""
    actual = {}
    for name, settings in Registry("distill.deltas", "WeightDelta").known().items():
        assert issubclass(settings, DeltaSettings)
        actual[name] = settings(**{key: value for key, value in SMALL.items() if key in settings.model_fields})
    return actual


def conv_case(kind: str, settings: DeltaSettings) -> tuple[nn.Sequential, torch.Tensor, WeightDelta]:
    """One layer in double precision, an input that wants a gradient, and the layer's delta with random numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(CONVS[kind]()).double().eval()
    delta = attach(model, [settings])[0].delta
    assert isinstance(delta, WeightDelta)
    delta.eval()
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(torch.randn_like(parameter))
    layer = model[0]
    shape = (2, 5, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 11, 12)
    return model, torch.randn(shape, dtype=torch.float64, requires_grad=True), delta


def build(name: str, **arguments: object) -> nn.Module:
    """A random network whose zero-initialized gains are not zero, so that every layer matters."""
    torch.manual_seed(0)
    shallow = {"depth": 3} if name == "test_vit" else {}  # a first block, a last one, and one between
    model = timm.create_model(name, num_classes=5, **shallow | arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def images(count: int = 3, size: int = 64, width: int | None = None) -> torch.Tensor:
    return torch.randn(count, 3, size, width or size, generator=torch.Generator().manual_seed(1))


def disturb(model: nn.Module) -> None:
    """Give every delta a change that shows in the logits."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in delta_state(model).items():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
            elif name.endswith(".bits"):
                tensor.copy_(torch.randint(256, tensor.shape, generator=generator))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())
