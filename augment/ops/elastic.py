"""Elastic deformation."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.sometimes import Params, PerSampleChange, Range, between, limits, noise_seed, uniform_noise


class Elastic(PerSampleChange):
    """Moves every pixel by smooth noise.

    Simard et al., "Best practices for convolutional neural networks applied to visual document analysis", 2003, with
    the units of torchvision's ElasticTransform: noise is uniform in [−1, 1], blurred by a Gaussian of ``sigma`` pixels,
    and moves a pixel by ``alpha / 2`` of it, in pixels.

    Args:
        alpha: a number, or [lowest, highest] to draw between for every sample. At sigma 5, the displacement has a
            standard deviation of 0.016 alpha pixels.
        sigma: the Gaussian's standard deviation in pixels.
        p: probability for a sample.

    The pixels outside are black. The blur is two matrix products: kornia's RandomElasticTransform, which convolves,
    takes many times as long.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Elastic")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = Elastic(alpha=20.0, sigma=1.0, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.7501, 0.4572, 0.0461],
                [0.0000, 0.7418, 0.1316],
                [0.0000, 0.0000, 0.0902]])
    """

    geometric = True

    def __init__(self, alpha: Range = 50.0, sigma: float = 5.0, p: float = 0.5):
        super().__init__(p)
        self.alpha = limits("alpha", alpha, 0)
        if not sigma > 0:
            raise ValueError(f"sigma is a number of pixels above 0, not {sigma}")
        self.sigma = float(sigma)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        return {"alpha": between(draws, 1, self.alpha), "noise": noise_seed(draws, 2)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        height, width = images.shape[2:]
        rough = uniform_noise(params["noise"], (2, height, width)).mul_(2).sub_(1)
        return elastic(images, self.smooth(rough).mul_(by_sample(params["alpha"])))

    def smooth(self, rough: Tensor) -> Tensor:
        """Noise [B, 2, H, W] blurred by the Gaussian up to 4 sigma, mirrored at the border."""
        rows, cols = (_blur(side, self.sigma, rough.device) for side in rough.shape[2:])
        return rows @ rough @ cols.T


def elastic(images: Tensor, shift: Tensor) -> Tensor:
    """Images [B, C, H, W] read at ``shift / 2`` pixels (x, y) [B, 2, H, W] from each pixel; bilinear, black outside."""
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) * 2 + 1 + shift[:, 0]) / width - 1
    y = (torch.arange(height, device=images.device)[:, None] * 2 + 1 + shift[:, 1]) / height - 1
    return F.grid_sample(images, torch.stack([x, y], 3).to(images.dtype), align_corners=False)


@lru_cache(maxsize=16)
def _blur(size: int, sigma: float, device: torch.device) -> Tensor:
    """[size, size]: the matrix that blurs a column of ``size`` pixels, as a convolution with mirrored border does."""
    reach = int(4 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    position = torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)
    period = max(2 * (size - 1), 1)
    mirrored = position % period
    mirrored = torch.minimum(mirrored, period - mirrored).clamp(max=size - 1)
    return torch.zeros(size, size).scatter_add_(1, mirrored, taps.expand(size, -1)).to(device)
