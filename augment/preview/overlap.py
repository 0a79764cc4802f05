"""How much of an image the teacher's and the student's views both show, and how different its colors are in them.

Both are measured on the drawn views, whatever their operations. An image whose values are coordinates passes through
the geometric operations with the draws of the view: every pixel of the result holds the position in the original that
it comes from. Linear resampling of a linear image is exact, so the method is the same for flips, crops and warps.
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
from augment.preview.paper import as_rgb
from augment.views import InputSpec

CELLS = 32
"""Overlap is counted on a grid of CELLS × CELLS over the original; a view shows a cell if it shows its middle."""


@dataclass(frozen=True)
class ViewOverlap:
    """Overlap and color distance, averaged over the pairs of views that objectives compare.

    ``overlap`` [B]: intersection over union of the parts of the original that the two views show, in [0, 1].
    ``color`` [B]: mean CIELAB distance (ΔE, 1976) between the two views at the points of the original that both
    show; NaN where there is no such point. About 2 is just visible, 100 is black against white.
    """

    overlap: Tensor
    color: Tensor

    def __str__(self) -> str:
        text = f"crops overlap {self.overlap.mean():.0%} (intersection over union)"
        both = self.color[~self.color.isnan()]
        return text + (f" · colors there differ by ΔE {both.mean():.1f}" if len(both) else " · no point in common")


@torch.no_grad()
def view_overlap(augment: DualAugment, images: Tensor, ids: Tensor, epoch: int) -> ViewOverlap:
    """Overlap and color distance of the views that ``augment`` makes of a batch, before any mixing.

    Of a teacher with several networks, the views of the first are measured: those of the others differ in size only.
    An operation that is not declared ``geometric`` counts as color, so moved pixels count as a difference of colors.

    Args:
        augment: with at least one teacher.
        images: [B, C, H, W], as given to ``augment``.
        ids: [B] int64.
        epoch: number of the epoch.

    Returns:
        Per image, averaged over the pairs of views.
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
    return ViewOverlap(torch.stack(overlaps).mean(0), torch.stack(distances).nanmean(0))


def _seen(
    augment: DualAugment, view_spec: ViewSpec, spec: InputSpec, images: Tensor, ids: Tensor, epoch: int
) -> tuple[Tensor, Tensor]:
    """Which cells of the original a view shows, bool [B, CELLS²], and its mean CIELAB color there [B, CELLS², 3]."""
    from kornia.color import rgb_to_lab

    size = view_spec.size or spec.size
    draws = Draws(augment.seed, epoch, view_spec.key, ids)
    geometry = Draws(augment.seed, epoch, view_spec.geometry, ids) if view_spec.geometry else None
    view = as_rgb(Chain(view_spec.recipe, size)(images, draws, geometry).cpu())
    height, width = images.shape[-2:]
    grid = coordinates(len(images), (height, width), images.device)
    sources = Chain([op.geometry for op in view_spec.recipe if op.geometric], size)(grid, draws, geometry).cpu()

    sources, view = _to_borders(sources), F.pad(view, (1, 1, 1, 1), mode="replicate")
    # At least six points per cell, so that at any angle one of them lies in the middle of a cell.
    fine = tuple(max(side, 6 * CELLS) for side in sources.shape[-2:])
    sources = F.interpolate(sources, fine, mode="bilinear", align_corners=True)
    view = F.interpolate(view, fine, mode="bilinear", align_corners=True)
    x, y, inside = sources.flatten(2).unbind(1)
    # A pixel half outside is mixed with the zeros outside, in all three channels.
    x, y = x / inside, y / inside
    valid = (inside > 0.5) & (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    middle = valid & ((x * CELLS).frac() - 0.5).abs().le(1 / 6) & ((y * CELLS).frac() - 0.5).abs().le(1 / 6)
    cell = torch.where(middle, y * CELLS, 0).long() * CELLS + torch.where(middle, x * CELLS, 0).long()
    cell = torch.where(middle, cell, CELLS**2)  # one more, for points in no cell
    counts = torch.zeros(len(images), CELLS**2 + 1).scatter_add_(1, cell, torch.ones_like(x))
    sums = torch.zeros(len(images), 3, CELLS**2 + 1)
    sums.scatter_add_(2, cell[:, None].expand(-1, 3, -1), view.flatten(2))
    mean = (sums / counts[:, None].clamp(min=1))[..., :-1]
    return counts[:, :-1] > 0, rgb_to_lab(mean[..., None].clamp(0, 1)).squeeze(-1).transpose(1, 2)


def coordinates(batch: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """[B, 3, H, W]: at every pixel its center's x and y, as fractions of the sides, and 1 for "inside the image".

    Args:
        batch: B.
        size: (height, width).
        device: of the result.

    Returns:
        [B, 3, H, W].
    """
    height, width = size
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height,
        (torch.arange(width, device=device) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack([x, y, torch.ones_like(x)]).expand(batch, -1, -1, -1)


def _to_borders(sources: Tensor) -> Tensor:
    """Add a row and a column on every side: values at the outer edges, half a pixel beyond the outermost centers."""
    for dim in (-2, -1):
        if sources.shape[dim] > 1:
            first, second = sources.narrow(dim, 0, 1), sources.narrow(dim, 1, 1)
            last, before = sources.narrow(dim, -1, 1), sources.narrow(dim, -2, 1)
            ends = (first + (first - second) / 2, last + (last - before) / 2)
        else:
            ends = (sources, sources)
        sources = torch.cat([ends[0], sources, ends[1]], dim)
    return sources
