"""3-Augment."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.blur import filtered
from augment.magnitude_ops import gray, solarize
from augment.operation import Sampled
from augment.sometimes import Params, Range, between, change_, limits


class ThreeAugment(Sampled):
    """One of three with equal probability: gray, solarized, or blurred.

    Touvron et al., "DeiT III" (arXiv 2204.07118), who combine it with color jitter of 0.3 and a flip: preset ``deit3``.

    Args:
        sigma: the blur's standard deviation in pixels; a number, or [lowest, highest] to draw between.
        threshold: solarizing inverts the values from here on; the paper's 128 of 255.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([5])).op("ThreeAugment")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        >>> op = ThreeAugment()
        >>> op.apply(images, op.sample(draws, images.shape))[0, :, 0, 0]
        tensor([0.4968, 0.4968, 0.4968])
    """

    def __init__(self, sigma: Range = (0.1, 2.0), threshold: float = 128 / 255):
        self.sigma = limits("sigma", sigma, 0.01)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a value in 0 … 1, not {threshold}")
        self.threshold = threshold

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        """``which`` [B]: 0 gray, 1 solarized, 2 blurred; ``sigma`` [B]."""
        return {"which": draws.integers(0, 0, 3), "sigma": between(draws, 1, self.sigma)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        result = images.clone()
        for number, change in enumerate((self._gray, self._solarized, self._blurred)):
            change_(result, params["which"] == number, change, params)
        return result

    def _gray(self, images: Tensor, params: Params) -> Tensor:
        return gray(images).expand_as(images)

    def _solarized(self, images: Tensor, params: Params) -> Tensor:
        return solarize(images, torch.full_like(params["sigma"], self.threshold))

    def _blurred(self, images: Tensor, params: Params) -> Tensor:
        # Three standard deviations of the widest kernel, or fewer in a small image, which has fewer pixels to mirror.
        reach = min(round(3 * self.sigma[1] + 0.5), min(images.shape[2:]) - 1)
        offset = torch.arange(-reach, reach + 1, device=images.device)
        taps = torch.exp(-0.5 * (offset / params["sigma"][:, None]) ** 2)
        taps = taps / taps.sum(1, keepdim=True)
        return filtered(images, taps, taps)
