"""What the teacher's and the student's views of an image have in common: how much of it, and in how different colors.

Both are measured on the views as they were drawn, whatever operations drew them. A picture of coordinates goes through
the geometric operations with the draws of the view: what comes out says, for every pixel of the view, where in the
original it came from. Linear resampling of a linear picture is exact, so flips, crops and warps are read in one way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from augment.chain import Chain
from augment.draws import Draws
from augment.dual import DualAugment
from augment.policy import ViewSpec
from augment.views import InputSpec

CELLS = 32
"""Overlap is counted on a grid of CELLS × CELLS over the original; a view shows a cell if it shows its middle."""


@dataclass(frozen=True)
class Shared:
    """What the pairs of views share, averaged over the pairs that objectives compare.

    ``overlap`` [B]: intersection over union of the parts of the original that the two views show, in [0, 1].
    ``color`` [B]: mean CIELAB distance (ΔE, 1976) between the two views at the points of the original that both
    show; NaN where they show none in common. About 2 is just visible, 100 is black against white.
    """

    overlap: Tensor
    color: Tensor

    def __str__(self) -> str:
        text = f"crops overlap {self.overlap.mean():.0%} (intersection over union)"
        both = self.color[~self.color.isnan()]
        return text + (f" · colors there differ by ΔE {both.mean():.1f}" if len(both) else " · no point in common")


@torch.no_grad()
def what_views_share(augment: DualAugment, images: Tensor, ids: Tensor, epoch: int) -> Shared:
    """What the views that ``augment`` makes of a batch share, before any mixing.

    With several networks in the teacher, the first one's views are taken: the others see the same at another size.
    Operations that are not declared ``geometric`` count as color, so what a mixed policy (RandAugment, say) moves is
    seen as a difference of colors.

    Args:
        augment: with at least one teacher.
        images: [B, 3, H, W], as given to ``augment``.
        ids: [B] int64.
        epoch: number of the epoch.
    """
    if not augment.teachers:
        raise ValueError("without a teacher there are no pairs of views to compare")
    spec = augment.teachers[0]
    ids = ids.cpu()
    teacher_views = [_seen(augment, view_spec, spec, images, ids, epoch) for view_spec in augment.view_plan.teacher]
    student_views = [
        _seen(augment, view_spec, augment.student, images, ids, epoch) for view_spec in augment.view_plan.student
    ]
    overlaps, distances = [], []
    for t, s in augment.view_plan.pairs:
        (shown_t, lab_t), (shown_s, lab_s) = teacher_views[t], student_views[s]
        both = shown_t & shown_s
        overlaps.append(both.sum(1) / (shown_t | shown_s).sum(1).clamp(min=1))
        apart = (lab_t - lab_s).norm(dim=2) * both
        distances.append(apart.sum(1) / both.sum(1))  # 0/0 is NaN: nothing in common
    return Shared(torch.stack(overlaps).mean(0), torch.stack(distances).nanmean(0))


def _seen(
    augment: DualAugment, view_spec: ViewSpec, spec: InputSpec, images: Tensor, ids: Tensor, epoch: int
) -> tuple[Tensor, Tensor]:
    """Which cells of the original a view shows, bool [B, CELLS²], and its mean CIELAB color there [B, CELLS², 3]."""
    from kornia.color import rgb_to_lab

    size = view_spec.size or spec.size
    draws = Draws(augment.seed, epoch, view_spec.key, ids)
    geometry = Draws(augment.seed, epoch, view_spec.geometry, ids) if view_spec.geometry else None
    view = Chain(view_spec.recipe, size)(images, draws, geometry).cpu()
    height, width = images.shape[-2:]
    grid = coordinates(len(images), (height, width), images.device)
    places = Chain([op for op in view_spec.recipe if op.geometric], size)(grid, draws, geometry).cpu()

    places, view = _to_borders(places), F.pad(view, (1, 1, 1, 1), mode="replicate")
    # Six points to a cell and more, so that whatever the angle one of them falls into the middle of a cell.
    fine = tuple(max(side, 6 * CELLS) for side in places.shape[-2:])
    places = F.interpolate(places, fine, mode="bilinear", align_corners=True)
    view = F.interpolate(view, fine, mode="bilinear", align_corners=True)
    x, y, inside = places.flatten(2).unbind(1)
    # A pixel half outside has mixed the outside's zeros into all three.
    x, y = x / inside, y / inside
    valid = (inside > 0.5) & (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    middle = valid & ((x * CELLS).frac() - 0.5).abs().le(1 / 6) & ((y * CELLS).frac() - 0.5).abs().le(1 / 6)
    cell = torch.where(middle, y * CELLS, 0).long() * CELLS + torch.where(middle, x * CELLS, 0).long()
    cell = torch.where(middle, cell, CELLS**2)  # one more, for what falls into none
    counts = torch.zeros(len(images), CELLS**2 + 1).scatter_add_(1, cell, torch.ones_like(x))
    sums = torch.zeros(len(images), 3, CELLS**2 + 1)
    sums.scatter_add_(2, cell[:, None].expand(-1, 3, -1), view.flatten(2))
    mean = (sums / counts[:, None].clamp(min=1))[..., :-1]
    return counts[:, :-1] > 0, rgb_to_lab(mean[..., None].clamp(0, 1)).squeeze(-1).transpose(1, 2)


def coordinates(batch: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """[B, 3, H, W]: at every pixel its center's x and y, as shares of the sides, and 1 for "inside the image"."""
    height, width = size
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height,
        (torch.arange(width, device=device) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack([x, y, torch.ones_like(x)]).expand(batch, -1, -1, -1)


def _to_borders(places: Tensor) -> Tensor:
    """One more row and column on every side: what lies on the pixels' outer edges, half a pixel from their centers."""
    for dim in (-2, -1):
        if places.shape[dim] > 1:
            first, second = places.narrow(dim, 0, 1), places.narrow(dim, 1, 1)
            last, before = places.narrow(dim, -1, 1), places.narrow(dim, -2, 1)
            ends = (first + (first - second) / 2, last + (last - before) / 2)
        else:
            ends = (places, places)
        places = torch.cat([ends[0], places, ends[1]], dim)
    return places
