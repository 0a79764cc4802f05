"""Networks with a structural delta."""

from typing import Any

import pytest
import torch
from deltas_models import build, images
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach
from distill.deltas.base import DeltaSettings
from distill.deltas.sites import classifier_names

METHODS: dict[str, DeltaSettings] = {
    name: settings()  # type: ignore[misc]
    for name, settings in Registry("distill.deltas", "StructuralDelta").known().items()
}


VARIANTS: dict[str, DeltaSettings] = METHODS | {
    name: type(METHODS[name.partition(" ")[0]])(**changes)
    for name, changes in {
        "deep_delta values": {"values": 4, "gate": "mlp", "gate_hidden": 8, "value": "sigmoid"},
        "deep_delta write only": {"write_only": True},
        "adapter plain": {"scale": False, "kernel": 1, "act": "silu", "hidden": 3},
        "ladder new": {"init": "random", "every": 2, "reduction": 4},
        "ladder stem": {"stem": True, "rungs": (0, 2)},
    }.items()
}


every_method = pytest.mark.parametrize("name", METHODS)


def with_delta(model: str, name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(1)
    network = build(model, **arguments)
    attach(network, [VARIANTS[name]], classifier_names(network))
    return network


def view(model: str, count: int = 2) -> torch.Tensor:
    """An odd number of pixels where the network takes that."""
    return images(count) if "vit" in model else images(count, 97, 75)
