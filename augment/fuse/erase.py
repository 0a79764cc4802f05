"""Erasing: a box per sample, filled with a value per sample or per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import Params, by_rows, by_sample


def erased(images: Tensor, boxes: Tensor, values: Tensor, drawn: Tensor | None) -> Tensor:
    """Fill one box per sample with a value.

    Args:
        images: [B, C, H, W].
        boxes: [B, 4]: top, left, height, width in pixels.
        values: [B] or [B, C].
        drawn: [B] bool, the samples that change; None: all.

    Returns:
        [B, C, H, W].
    """
    height, width = images.shape[-2:]
    top, left, tall, wide = (by_sample(side) for side in boxes.unbind(1))
    y = torch.arange(height, device=images.device).view(-1, 1)
    x = torch.arange(width, device=images.device)
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    if drawn is not None:
        inside = inside & by_sample(drawn)
    return torch.where(inside, by_sample(values).to(images.dtype), images)


def _filled(images: Tensor, boxes: Tensor, values: Tensor, drawn: Tensor | None) -> Tensor:
    """The same on a CPU, where writing only the boxes, into a copy, is cheaper than selecting every pixel."""
    rows = range(len(images)) if drawn is None else drawn.nonzero()[:, 0].tolist()
    if len(rows):
        images = images.clone()
    boxes = boxes.long()
    height, width = images.shape[-2:]
    for row in rows:
        top, left, tall, wide = boxes[row].tolist()
        bottom, right = min(max(top + tall, 0), height), min(max(left + wide, 0), width)
        value = values[row] if values.ndim == 1 else values[row].view(-1, 1, 1)
        images[row, :, max(top, 0) : bottom, max(left, 0) : right] = value
    return images


def erase(user: Any, images: Tensor, params: Params) -> Tensor:
    """Apply one ``erase`` operation to the drawn samples.

    Args:
        user: the operation.
        images: [B, C, H, W].
        params: its parameters; ``drawn`` [B] bool marks the samples that change.

    Returns:
        [B, C, H, W].
    """
    if by_rows(images) and "drawn" in params and not params["drawn"].any():
        return images
    boxes, values = user.erase(params, images.shape)
    return (_filled if by_rows(images) else erased)(images, boxes, values, params.get("drawn"))
