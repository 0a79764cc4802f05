"""Rotation, scale, shear and translation in one map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.base import ranged
from augment.kornia_ops.rotation import rotation
from augment.kornia_ops.shear import shear
from augment.kornia_ops.warp import Warp, middle, sampler_ends


class RandomAffine(Warp):
    """Rotation, scale, shear and translation in one.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomAffine")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomAffine(K.RandomAffine(degrees=0.0, translate=(0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.5428, 0.6678, 0.2636],
                [0.6323, 0.7276, 0.2816],
                [0.0000, 0.0000, 0.0000]])
    """

    wraps = "RandomAffine"
    uniforms = 7

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.ends = {name: sampler_ends(getattr(sampler, f"{name}_sampler")) for name in _AFFINE}

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        filled = module.flags["fill_value"] is not None
        return "fill_value" if filled else super().unfit(module)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        def draw(column: int, name: str, default: float = 0.0) -> Tensor:
            ends = self.ends[name]
            return torch.full_like(u[:, 0], default) if ends is None else ranged(u[:, column], *ends)

        across = draw(1, "scale_2", 1.0)
        down = across if self.ends["scale_4"] is None else draw(2, "scale_4")
        x, y = middle(shape)
        return {
            "angle": draw(0, "degree"),
            "scale": torch.stack([across, down], 1),
            "translations": torch.stack([draw(3, "translate_x") * shape[-1], draw(4, "translate_y") * shape[-2]], 1),
            "center": torch.stack([torch.full_like(across, x), torch.full_like(across, y)], 1),
            "shear_x": draw(5, "shear_x"),
            "shear_y": draw(6, "shear_y"),
        }

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        center = middle(shape)
        rotated = rotation(-params["angle"], center, params["scale"])
        moved = rotated + torch.nn.functional.pad(params["translations"][:, :, None], (2, 0, 0, 1))
        return moved @ shear(params["shear_x"], params["shear_y"], center)


_AFFINE = ("degree", "scale_2", "scale_4", "translate_x", "translate_y", "shear_x", "shear_y")
