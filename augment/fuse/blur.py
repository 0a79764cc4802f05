"""The blur pass: separable filters by sample.

On a CPU only the drawn samples are filtered, and only with the taps that have any weight. Elsewhere all samples are
filtered and the drawn ones are selected, because the host would have to synchronize to know which are drawn.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from augment.fuse.color import Params, by_rows, by_sample, where_drawn

NEGLIGIBLE = 1e-9
"""Smaller weights are left out: a whole kernel of them changes a pixel by less than the resolution of float32."""


def filtered(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Correlate images with a separable kernel per sample, reflected at the border.

    Args:
        images: [B, C, H, W] floats.
        vertical: [B, k], k odd: weights along the height.
        horizontal: [B, k], k odd: weights along the width.

    Returns:
        [B, C, H, W].
    """
    if by_rows(images):
        vertical, horizontal = _trimmed(vertical), _trimmed(horizontal)
    up, left = vertical.shape[1] // 2, horizontal.shape[1] // 2
    x = F.pad(images, (left, left, up, up), mode="reflect")
    x = _along(x, horizontal, 3, images.shape[3])
    return _along(x, vertical, 2, images.shape[2])


def _along(x: Tensor, kernel: Tensor, axis: int, size: int) -> Tensor:
    if len(x) == 1 and by_rows(x):
        weights = kernel[0].tolist()
        total = x.narrow(axis, 0, size) * weights[0]
        for n, weight in enumerate(weights[1:], 1):
            total.add_(x.narrow(axis, n, size), alpha=weight)
        return total
    taps = [by_sample(tap) for tap in kernel.unbind(1)]
    total = x.narrow(axis, 0, size) * taps[0]
    for n, tap in enumerate(taps[1:], 1):
        total.addcmul_(x.narrow(axis, n, size), tap)
    return total


def _trimmed(kernel: Tensor) -> Tensor:
    reach = kernel.shape[1] // 2
    used = (kernel.abs().amax(0) > NEGLIGIBLE).nonzero()
    if not len(used):
        return kernel
    least = min(int(used[0]), 2 * reach - int(used[-1]))
    return kernel[:, least : kernel.shape[1] - least]


def blur(user: Any, images: Tensor, params: Params) -> Tensor:
    """Apply one ``kernel`` operation to the drawn samples.

    Args:
        user: the operation.
        images: [B, C, H, W].
        params: its parameters; ``drawn`` [B] bool marks the samples that change.

    Returns:
        [B, C, H, W].
    """
    return where_drawn(lambda some, some_params: filtered(some, *user.kernel(some_params, some.shape)), images, params)
