"""Differences of two delta files: of their changes, site by site, and of the logits of two models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.export.checksummed import ExportError
from distill.export.delta.algebra import check_one_backbone
from distill.export.delta.model import DeltaFile, by_site, change_of, needs_values


@dataclass(frozen=True)
class Difference:
    """Two changes of one site (or of all together), each as one vector of weight and bias."""

    site: str
    first: float
    """Euclidean norm of the first change."""
    second: float
    distance: float
    """Euclidean norm of the difference."""
    cosine: float | None
    """Of the angle between the two; None if one of them is zero."""


@dataclass(frozen=True)
class LogitsChange:
    """How much the logits of two models differ."""

    images: int
    relative: float
    """Largest absolute difference over the largest absolute logit before."""
    same_top1: int
    """Images whose top-1 class is the same before and after."""


def diff(first: DeltaFile, second: DeltaFile, backbone: nn.Module, knows_values: bool) -> list[Difference]:
    """Compare the changes of two files.

    Args:
        first: a file.
        second: another one, of the same backbone.
        backbone: of the files' architecture. Its values matter for deltas that depend on them, such as scale and shift.
        knows_values: whether they are the values of the files' backbone.

    Returns:
        One for each site that one of the files changes; the last, ``all``, is of all together.

    Raises:
        ExportError: different backbones, or the values are needed and not known.
    """
    check_one_backbone(first, second)
    lines, sums = [], torch.zeros(4, dtype=torch.float64)
    for site, chains in by_site(first, second):
        if not knows_values and any(needs_values(chain) for chain in chains):
            raise ExportError(f"{site}: this change depends on the backbone's weights; give the backbone")
        a, b = (change_of(backbone, site, chain) for chain in chains)
        names = sorted(a.keys() | b.keys())
        shapes = {name: (a if name in a else b)[name] for name in names}
        u, v = (
            torch.cat([c.get(name, torch.zeros_like(shapes[name])).double().flatten() for name in names])
            for c in (a, b)
        )
        products = torch.stack([u @ u, v @ v, (u - v) @ (u - v), u @ v])
        sums += products
        lines.append(_line(site, products))
    return [*lines, _line("all", sums)]


def logits_change(before: nn.Module, after: nn.Module, images: Tensor) -> LogitsChange:
    """Compare the logits of two models.

    Args:
        before: in eval mode.
        after: in eval mode.
        images: [N, 3, H, W] fp32, normalized.

    Returns:
        The change from the first to the second.
    """
    with torch.no_grad():
        pairs = [(before(batch), after(batch)) for batch in images.split(32)]
    old, new = (torch.cat(side).float() for side in zip(*pairs))
    return LogitsChange(
        images=len(images),
        relative=float((new - old).abs().max() / old.abs().max()),
        same_top1=int((old.argmax(1) == new.argmax(1)).sum()),
    )


def seeded_images(size: tuple[int, int, int], count: int, seed: int = 0) -> Tensor:
    """Smooth noise of mean 0 and standard deviation 1 per image, in place of photographs.

    Args:
        size: channels, height, width.
        count: of images.
        seed: the same seed gives the same images.

    Returns:
        [count, C, H, W] fp32.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, size[0], 12, 12, generator=generator)
    images = F.interpolate(noise, size[1:], mode="bicubic", align_corners=False)
    return (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)


def _line(site: str, products: Tensor) -> Difference:
    first, second, distance = products[:3].sqrt().tolist()
    cosine = float(products[3]) / (first * second) if first and second else None
    return Difference(site, first, second, distance, cosine)
