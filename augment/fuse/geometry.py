"""The geometry pass: homographies composed to one per sample, and every pixel read once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def warp(images: Tensor, matrix: Tensor, size: tuple[int, int], resample: str, padding: str) -> Tensor:
    """Images [B, C, H, W] under homographies [B, 3, 3], source pixel → destination pixel, read at ``size``."""
    H, W = images.shape[-2:]
    back = torch.linalg.inv(matrix)
    y = torch.arange(size[0], device=images.device, dtype=back.dtype).view(-1, 1)
    x = torch.arange(size[1], device=images.device, dtype=back.dtype)
    u, v, w = (
        back[:, i, 0, None, None] * x + back[:, i, 1, None, None] * y + back[:, i, 2, None, None] for i in range(3)
    )
    # Normalised as grid_sample has it without aligned corners: right for a side of one pixel, too.
    grid = torch.stack([(2 * u / w + 1) / W - 1, (2 * v / w + 1) / H - 1], -1)
    return F.grid_sample(images, grid, mode=resample, padding_mode=padding, align_corners=False)


def warp_alone(user: Any, images: Tensor, params: dict[str, Any]) -> Tensor:
    """One operation by itself."""
    matrix = user.affine(params, images.shape)
    drawn = params.get("drawn")
    if drawn is not None:
        matrix = torch.where(drawn.view(-1, 1, 1), matrix, torch.eye(3, device=matrix.device))
    size = user.output_size(images.shape) if hasattr(user, "output_size") else tuple(images.shape[-2:])
    return warp(images, matrix, size, getattr(user, "resample", "bilinear"), getattr(user, "padding", "zeros"))
