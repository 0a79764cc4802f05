"""Delta files of one small backbone, for the tests of the algebra."""

from pathlib import Path

import torch
from export_students import LABELS, make_backbone
from torch import nn

from distill.deltas.attach import attach
from distill.deltas.base import DeltaSettings
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state
from distill.export.delta.io import save_delta
from distill.models.fingerprint import fingerprint
from distill.models.timm_models import new_classifier


def write_file(
    folder: Path,
    specs: list[DeltaSettings],
    seed: int = 1,
    architecture: str = "test_efficientnet",
    backbone_seed: int = 0,
    labels: tuple[str, ...] = LABELS,
    head_seed: int | None = None,
) -> Path:
    """A delta folder with random numbers; ``head_seed`` makes heads differ."""
    model = make_backbone(architecture, backbone_seed)
    if len(labels) != model.num_classes:
        new_classifier(model, len(labels))
    head = classifier_names(model)
    before = fingerprint(backbone_state(model, head))
    attach(model, specs, head)
    fill(delta_state(model).values(), seed)
    if head_seed is not None:
        fill([p for name in head for p in model.get_submodule(name).parameters()], head_seed)
    save_delta(folder, model, before, origin="random", labels=labels)
    return folder


def fill(tensors, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight as it is used, by timm's names."""
    return {
        f"{name}.{part}": getattr(module, part).detach()
        for name, module in model.named_modules()
        for part in ("weight", "bias")
        if "parametrizations" not in name and isinstance(getattr(module, part, None), torch.Tensor)
    }
