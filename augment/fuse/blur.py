"""The blur pass: separable filters by sample, at the cost of the samples that are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def filtered(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Images [B, C, H, W] correlated with ``vertical`` and ``horizontal`` [B, k], reflected at the border."""
    B, C, H, W = images.shape
    for kernel, pad, shape in ((horizontal, (1, 0), (1, -1)), (vertical, (0, 1), (-1, 1))):
        reach = kernel.shape[1] // 2
        x = F.pad(images, (reach * pad[0], reach * pad[0], reach * pad[1], reach * pad[1]), mode="reflect")
        weight = kernel.repeat_interleave(C, 0).view(B * C, 1, *shape)
        images = F.conv2d(x.flatten(0, 1)[None], weight, groups=B * C).view(B, C, H, W)
    return images


def blur_alone(user: Any, images: Tensor, params: dict[str, Any]) -> Tensor:
    """One operation by itself."""
    blurred = filtered(images, *user.kernel(params, images.shape))
    drawn = params.get("drawn")
    return blurred if drawn is None else torch.where(drawn.view(-1, 1, 1, 1), blurred, images)
