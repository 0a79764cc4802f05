"""How far apart two delta files are: layer by layer in their weights, and as a whole in their logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.export.checksummed import ExportError
from distill.export.delta.algebra import check_one_backbone
from distill.export.delta.model import DeltaFile, change_of, needs_values, places


@dataclass(frozen=True)
class Difference:
    """Two changes of one place, or of all of them: weight and bias together, as one vector."""

    place: str
    first: float
    """Euclidean norm of the first change."""
    second: float
    distance: float
    """Euclidean norm of the difference."""
    cosine: float | None
    """Of the angle between the two; None where one of them is zero."""


@dataclass(frozen=True)
class LogitsChange:
    """What an operation did to the logits."""

    images: int
    relative: float
    """Largest absolute difference over the largest absolute logit before."""
    same_top1: int
    """Images whose top-1 class is the same before and after."""


def diff(first: DeltaFile, second: DeltaFile, backbone: nn.Module, knows_values: bool) -> list[Difference]:
    """A line for each place that one of them changes; the last line, ``all``, is of all together.

    Args:
        backbone: of the files' architecture. Its values matter for deltas that depend on them (scale and shift, say).
        knows_values: whether they are the values of the files' backbone.

    Raises:
        ExportError: different backbones, or the values are needed and not known.
    """
    check_one_backbone(first, second)
    lines, sums = [], torch.zeros(4, dtype=torch.float64)
    for place, chains in places(first, second):
        if not knows_values and any(needs_values(chain) for chain in chains):
            raise ExportError(f"{place}: this change depends on the backbone's weights; give the backbone")
        a, b = (change_of(backbone, place, chain) for chain in chains)
        names = sorted(a.keys() | b.keys())
        shapes = {name: (a if name in a else b)[name] for name in names}
        u, v = (
            torch.cat([c.get(name, torch.zeros_like(shapes[name])).double().flatten() for name in names])
            for c in (a, b)
        )
        products = torch.stack([u @ u, v @ v, (u - v) @ (u - v), u @ v])
        sums += products
        lines.append(_line(place, products))
    return [*lines, _line("all", sums)]


def logits_change(before: nn.Module, after: nn.Module, images: Tensor) -> LogitsChange:
    """Compare two models in eval mode on [N, 3, H, W] normalized images."""
    with torch.no_grad():
        pairs = [(before(batch), after(batch)) for batch in images.split(32)]
    old, new = (torch.cat(side).float() for side in zip(*pairs))
    return LogitsChange(
        images=len(images),
        relative=float((new - old).abs().max() / old.abs().max()),
        same_top1=int((old.argmax(1) == new.argmax(1)).sum()),
    )


def seeded_images(size: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Smooth noise [count, C, H, W] of mean 0 and deviation 1: no photographs, but the same numbers everywhere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, size[0], 12, 12, generator=generator)
    images = F.interpolate(noise, size[1:], mode="bicubic", align_corners=False)
    return (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)


def _line(place: str, products: Tensor) -> Difference:
    first, second, distance = products[:3].sqrt().tolist()
    cosine = float(products[3]) / (first * second) if first and second else None
    return Difference(place, first, second, distance, cosine)
