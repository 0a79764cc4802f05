"""Cut, the base of crops and resizing: axis-aligned maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.base import UserError
from augment.fuse.geometry import axis_map, inverse
from augment.kornia_ops.base import FusedKorniaOp


class SizeError(UserError, ValueError):
    """Images are smaller than what an operation cuts out of them; the text names both."""


def corners(left: Tensor, top: Tensor, width: Tensor | int, height: Tensor | int) -> Tensor:
    """Corners of boxes.

    Args:
        left: [B], x of the left edge.
        top: [B], y of the top edge.
        width: in pixels, [B] or one for all.
        height: in pixels, [B] or one for all.

    Returns:
        [B, 4, 2] as (x, y), clockwise from the top left, as kornia orders them.
    """
    right, bottom = left + width - 1, top + height - 1
    return torch.stack([left, top, right, top, right, bottom, left, bottom], 1).view(-1, 4, 2)


class Cut(FusedKorniaOp):
    """Base of the operations that show a box of the image at a fixed size."""

    axis_aligned = stays_inside = True
    size: tuple[int, int]

    def output_size(self, shape: torch.Size) -> tuple[int, int]:
        return self.size

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return inverse(self.pullback(params, shape))

    def box(self, left: Tensor, top: Tensor, width: Tensor | int, height: Tensor | int) -> dict[str, Tensor]:
        """kornia's parameters for showing a box of the image.

        Args:
            left: [B], x of the left edge.
            top: [B], y of the top edge.
            width: in pixels, [B] or one for all.
            height: in pixels, [B] or one for all.

        Returns:
            ``src`` and ``dst`` [B, 4, 2], the corners before and after.
        """
        zero = torch.zeros_like(left)
        return {"src": corners(left, top, width, height), "dst": corners(zero, zero, self.size[1], self.size[0])}

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        """The corners of ``dst`` come from those of ``src``: x ↦ left + x · (right - left) / (w - 1)."""
        first, last = params["src"][:, 0], params["src"][:, 2]
        height, width = self.size
        extent = last - first
        across, down = extent[:, 0] / max(width - 1, 1), extent[:, 1] / max(height - 1, 1)
        return axis_map(across, first[:, 0], down, first[:, 1])


PADDING = {"constant": "zeros", "replicate": "border", "reflect": "reflection"}
"""Mode of kornia's crops → name of the same padding in :func:`augment.fuse.geometry.read`."""


def unfit_resampling(flags: dict[str, Any]) -> str | None:
    """Why a kornia module's way of resampling cannot be fused, or None if it can."""
    mode = flags["resample"].name.lower()
    return None if mode == "bilinear" else f"resample={mode!r}"
