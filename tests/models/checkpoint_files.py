"""Files of networks with random weights, and networks read from them."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings
from distill.models.weights import NetworkError

VIT = "test_vit"


def make(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    for parameter in model.parameters():  # layer scales of zero would hide a block that is not loaded
        nn.init.normal_(parameter, std=0.1)
    return model


def network(model: str, file: Path, classes: int | None = None, **settings: object) -> Network:
    return create_network(NetworkSettings(model=model, checkpoint=file, **settings), classes)


def refused(model: str, file: Path, **settings: object) -> str:
    with pytest.raises(NetworkError) as error:
        network(model, file, **settings)
    return str(error.value)


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_equal(made: nn.Module, source: nn.Module, size: int = 64) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(made(x), source(x), rtol=1e-4, atol=1e-4)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}
