"""Random models, inputs and changed deltas for the tests of deltas."""

import timm
import torch
from torch import nn

from distill.deltas.state import delta_state


def build(name: str) -> nn.Module:
    """A random network whose zero-initialised gains are not zero, so that every layer matters."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def images(count: int = 3, size: int = 160) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def disturb(model: nn.Module) -> None:
    """Give every delta a change that shows in the logits."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in delta_state(model).values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())
