"""Blurs: a kernel along each axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.base import FusedKorniaOp, ranged
from augment.kornia_ops.crop import SizeError


class RandomGaussianBlur(FusedKorniaOp):
    """A Gaussian of a standard deviation drawn by sample, on a kernel of fixed size.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomGaussianBlur")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomGaussianBlur(K.RandomGaussianBlur((3, 3), (1.0, 1.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.2741, 0.3306, 0.3870],
                [0.4435, 0.5000, 0.5565],
                [0.6130, 0.6694, 0.7259]])
    """

    wraps = "RandomGaussianBlur"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator.sigma_sampler
        self.sigma = float(sampler.low), float(sampler.high)
        self.sizes = _sizes(module)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        if not module.flags["separable"]:
            return "separable=False"
        return _unfit_kernel(module)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        _check_reach("RandomGaussianBlur", self.sizes, shape)
        return {"sigma": ranged(u[:, 0], *self.sigma)}

    def kernel(self, params: dict[str, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
        vertical, horizontal = (gaussian(size, params["sigma"]) for size in self.sizes)
        return vertical, horizontal


class RandomBoxBlur(FusedKorniaOp):
    """The mean of a box of fixed size.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomBoxBlur")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomBoxBlur(K.RandomBoxBlur((3, 3), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.3333, 0.3750, 0.4167],
                [0.4583, 0.5000, 0.5417],
                [0.5833, 0.6250, 0.6667]])
    """

    wraps = "RandomBoxBlur"

    def __init__(self, module: Any):
        super().__init__(module)
        self.sizes = _sizes(module)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        return _unfit_kernel(module)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        _check_reach("RandomBoxBlur", self.sizes, shape)
        return {}

    def kernel(self, params: dict[str, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(params["drawn"], dtype=torch.float32)[:, None]
        vertical, horizontal = ((ones / size).expand(-1, size) for size in self.sizes)
        return vertical, horizontal


def gaussian(size: int, sigma: Tensor) -> Tensor:
    """[B, size]: exp(-d² / 2σ²) at distances d from the middle, summing to 1."""
    distance = torch.arange(size, device=sigma.device, dtype=sigma.dtype) - size // 2
    weight = torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2))
    return weight / weight.sum(1, keepdim=True)


def _sizes(module: Any) -> tuple[int, int]:
    size = module.flags["kernel_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _unfit_kernel(module: Any) -> str | None:
    border = module.flags["border_type"].name.lower()
    if border != "reflect":
        return f"border_type={border!r}"
    return "an even kernel_size" if any(size % 2 == 0 for size in _sizes(module)) else None


def _check_reach(name: str, sizes: tuple[int, int], shape: torch.Size) -> None:
    for size, side, what in zip(sizes, shape[-2:], ("high", "wide")):
        if side <= size // 2:
            raise SizeError(
                f"{name} reflects {size // 2} pixels at the border, but every sample of the batch is {side} {what}; "
                "take a smaller kernel_size"
            )
