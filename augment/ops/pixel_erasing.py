"""Rectangles of noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from augment.draws import Draws
from augment.sometimes import Params, PerSampleChange, limits, noise_seed, normal_noise


class PixelErasing(PerSampleChange):
    """Fills a rectangle with noise.

    Zhong et al., "Random erasing data augmentation" (arXiv 1708.04896), as in timm: up to ten tries at a rectangle that
    fits, else the image is unchanged. kornia's RandomErasing fills with a fixed color, and is much faster.

    Args:
        scale: [lowest, highest] fraction of the image's area.
        ratio: [lowest, highest] height : width, drawn uniformly in its logarithm.
        noise: ``pixel``, drawn for every pixel, or ``color``, drawn once for the rectangle.
        mean: per channel, or one for all; by default ImageNet's.
        std: per channel, or one for all; by default ImageNet's.
        p: probability for a sample.

    timm erases after normalization with standard normal noise. This operation does the same before normalization, so a
    network's own mean and std have to be given, and the chain clips values outside [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("PixelErasing")
        >>> images = torch.ones(1, 1, 4, 4)
        >>> op = PixelErasing(scale=(0.2, 0.4), noise="color", mean=0.0, std=0.0, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[1., 1., 1., 1.],
                [0., 0., 1., 1.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """

    TRIES = 10

    def __init__(
        self,
        scale: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        noise: Literal["pixel", "color"] = "pixel",
        mean: float | Sequence[float] = (0.485, 0.456, 0.406),
        std: float | Sequence[float] = (0.229, 0.224, 0.225),
        p: float = 0.5,
    ):
        super().__init__(p)
        if noise not in ("pixel", "color"):
            raise ValueError(f"noise is 'pixel' or 'color', not {noise!r}")
        self.scale = limits("scale", scale, 0, 1)
        self.ratio = limits("ratio", ratio, math.ulp(0.0))
        self.noise, self.mean, self.std = noise, mean, std

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """``box`` [B, 4]: top, left, height, width in pixels; a box of height 0 if no try fits."""
        height, width = shape[2:]
        low, high = self.scale
        area = (draws.uniform(1, (self.TRIES,)) * (high - low) + low) * (height * width)
        low, high = map(math.log, self.ratio)
        ratio = (draws.uniform(2, (self.TRIES,)) * (high - low) + low).exp()
        tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (tall < height) & (wide < width)
        # argmax finds the first that fits.
        first = fits.int().argmax(1, keepdim=True)
        tall, wide = (side.gather(1, first).squeeze(1) * fits.any(1) for side in (tall, wide))
        top = (draws.uniform(3) * (height - tall + 1)).floor()
        left = (draws.uniform(4) * (width - wide + 1)).floor()
        return {"box": torch.stack([top, left, tall, wide], 1), "noise": noise_seed(draws, 5)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        channels, height, width = images.shape[1:]
        top, left, tall, wide = params["box"].unbind(1)
        hole = _inside(top, tall, height)[:, :, None] & _inside(left, wide, width)[:, None, :]
        pixels = (height, width) if self.noise == "pixel" else (1, 1)
        filling = normal_noise(params["noise"], (channels, *pixels))
        mean, std = (_per_channel(name, value, channels) for name, value in (("mean", self.mean), ("std", self.std)))
        for channel in range(channels):  # numbers: a tensor made of them would synchronize with a GPU
            filling[:, channel].mul_(std[channel]).add_(mean[channel])
        return torch.where(hole[:, None], filling, images)


def _inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """[B, size] bool: start ≤ position < start + length."""
    position = torch.arange(size, device=start.device)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> Sequence[float]:
    values = [value] * channels if isinstance(value, int | float) else value
    if len(values) != channels:
        raise ValueError(f"PixelErasing: {name} has {len(values)} numbers, but the images have {channels} channels")
    return values
