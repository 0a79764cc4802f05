"""Small trained students: deltas and head that are not at their start, batch-norm statistics that moved."""

from typing import NamedTuple

import timm
import torch
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.base import DeltaSettings
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state
from distill.models.fingerprint import Fingerprint, fingerprint

LABELS = ("daisy", "rose", "tulip", "lily", "iris")


class Trained(NamedTuple):
    model: nn.Module
    identity: Fingerprint


def make_backbone(architecture: str = "test_efficientnet", seed: int = 0, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(architecture, num_classes=len(LABELS), **arguments).eval()


@torch.no_grad()
def logits(model: nn.Module, size: int = 160) -> torch.Tensor:
    """[2, 5], of two fixed images."""
    return model.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


def train(model: nn.Module, specs: list[DeltaSettings], moved: bool = False) -> Trained:
    head = classifier_names(model)
    identity = fingerprint(backbone_state(model, head))
    attach(model, specs, head)
    torch.manual_seed(9)
    with torch.no_grad():
        learned = [*delta_state(model).values(), *(p for n in head for p in model.get_submodule(n).parameters())]
        for tensor in learned:
            tensor += 0.05 * torch.randn_like(tensor)
        if moved:
            model.bn1.running_mean += 0.1
    return Trained(model, identity)
