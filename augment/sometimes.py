"""Operations that change some samples of a batch and leave the others, and the ranges that they draw from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.operation import Sampled

Params = dict[str, Tensor]
Range = float | tuple[float, float]
"""A fixed value, or (lowest, highest) to draw between, uniformly."""


class Sometimes(Sampled):
    """An operation applied to a sample with probability ``p``; ``params["drawn"]``, [B] bool, marks the samples."""

    def __init__(self, p: float):
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability, 0 … 1, not {p}")
        self.p = p

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        return {"drawn": draws.bernoulli(0, self.p), **self.draw(draws, shape)}

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """All other parameters for images of ``shape`` [B, C, H, W], row b for sample b; slot 0 holds ``drawn``."""
        return {}


class PerSampleChange(Sometimes, ABC):
    """An operation that changes the drawn samples only, by its own code: :meth:`change`."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return change_(images.clone(), params["drawn"], self.change, params)

    @abstractmethod
    def change(self, images: Tensor, params: Params) -> Tensor:
        """The changed images [B, C, H, W], each by its row of ``params``; ``images`` stays unchanged."""

    def refuse(self, problem: str) -> ValueError:
        """The error for images that the operation cannot work on."""
        return ValueError(f"{type(self).__name__}: {problem}")


def change_(images: Tensor, drawn: Tensor, change: Callable[[Tensor, Params], Tensor], params: Params) -> Tensor:
    """Change the drawn samples, in place.

    On a CPU only those are computed. Elsewhere all samples are computed and the drawn ones selected, because gathering
    them would synchronize with the device.

    Args:
        images: [B, C, H, W]; overwritten.
        drawn: [B] bool, the samples to change.
        change: computes the changed images from images and parameters.
        params: row b for sample b.

    Returns:
        ``images``.
    """
    if images.device.type != "cpu":
        return images.copy_(torch.where(by_sample(drawn), change(images, params), images))
    rows = drawn.nonzero().squeeze(1)
    if 0 < len(rows) < len(images):
        images[rows] = change(images[rows], {name: value[rows] for name, value in params.items()})
    elif len(rows):
        images.copy_(change(images, params))
    return images


def limits(name: str, given: Range, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """Check a range.

    Args:
        name: of the argument, for the error.
        given: a number, or (lowest, highest).
        low: the lowest value allowed.
        high: the highest value allowed.

    Returns:
        (lowest, highest).

    Raises:
        ValueError: it is not in order, or leaves ``low`` … ``high``.
    """
    values = (given, given) if isinstance(given, int | float) else given
    if not isinstance(values, Sequence) or len(values) != 2 or not low <= values[0] <= values[1] <= high:
        raise ValueError(f"{name} is a number or [lowest, highest] in {low:g} … {high:g}, not {given}")
    return float(values[0]), float(values[1])


def between(draws: Draws, slot: int, limits: tuple[float, float]) -> Tensor:
    """Draw from a range.

    Args:
        draws: of the operation.
        slot: number of the draw.
        limits: (lowest, highest).

    Returns:
        [B] uniform between the two.
    """
    low, high = limits
    return draws.uniform(slot) * (high - low) + low


def noise_seed(draws: Draws, slot: int) -> Tensor:
    """[B] int64 seeds, from which the functions below make each sample's noise where it is needed."""
    return draws.bits(slot)


def uniform_noise(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """[B, *shape] uniform in [0, 1)."""
    return Draws(0, 0, "noise", seed).uniform(0, shape)


def normal_noise(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """[B, *shape] standard normal: two numbers from each word of 64 bits, by Box and Muller (so at most 6.7 sd)."""
    count = math.prod(shape)
    word = Draws(0, 0, "noise", seed).bits(0, (-(-count // 2),))
    radius = (((word >> 32) & 0xFFFFFFFF).float() + 1).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = (word & 0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
    both = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], 1)
    return both[:, :count].reshape(-1, *shape)
