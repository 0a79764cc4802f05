"""Erasing: a box per sample, filled with a value per sample or per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.colour import by_sample


def erased(images: Tensor, boxes: Tensor, values: Tensor, drawn: Tensor | None) -> Tensor:
    """Images [B, C, H, W] with ``values`` [B] or [B, C] inside ``boxes`` [B, 4]: top, left, height, width."""
    height, width = images.shape[-2:]
    top, left, tall, wide = (by_sample(side) for side in boxes.unbind(1))
    y = torch.arange(height, device=images.device).view(-1, 1)
    x = torch.arange(width, device=images.device)
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    if drawn is not None:
        inside = inside & by_sample(drawn)
    return torch.where(inside, by_sample(values).to(images.dtype), images)


def erase_alone(user: Any, images: Tensor, params: dict[str, Any]) -> Tensor:
    """One operation by itself."""
    return erased(images, *user.erase(params, images.shape), params.get("drawn"))
