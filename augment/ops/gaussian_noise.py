"""Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.sometimes import Params, PerSampleChange, Range, between, limits, noise_seed, normal_noise


class GaussianNoise(PerSampleChange):
    """Adds normal noise, independent in every pixel and channel: ``x + σ · n``, clipped to [0, 1].

    Args:
        std: σ, for images in [0, 1]; a number, or [lowest, highest] to draw between for every sample.
        p: probability for a sample.

    kornia's RandomGaussianNoise has one σ for all samples, draws noise also for unchanged ones, and does not clip.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("GaussianNoise")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = GaussianNoise(std=0.1, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.1338, 0.4870, 0.4872])
    """

    def __init__(self, std: Range = (0.02, 0.1), p: float = 0.5):
        super().__init__(p)
        self.std = limits("std", std, 0)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        return {"std": between(draws, 1, self.std), "noise": noise_seed(draws, 2)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        added = normal_noise(params["noise"], images.shape[1:])
        return added.mul_(by_sample(params["std"])).add_(images).clamp_(0, 1)
