"""Translation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.geometry import matrix
from augment.kornia_ops.base import ranged
from augment.kornia_ops.warp import Warp, sampler_ends


class RandomTranslate(Warp):
    """Translation by a fraction of the width and of the height.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomTranslate")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomTranslate(K.RandomTranslate((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.0000, 0.0625],
                [0.0000, 0.1875, 0.4375],
                [0.0000, 0.3750, 0.8125]])
    """

    wraps = "RandomTranslate"
    uniforms = 2
    axis_aligned = True

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        ends = (sampler_ends(sampler.translate_x_sampler), sampler_ends(sampler.translate_y_sampler))
        self.across, self.down = ((0.0, 0.0) if end is None else end for end in ends)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        across, down = ranged(u[:, 0], *self.across), ranged(u[:, 1], *self.down)
        return {"translate_x": across * shape[-1], "translate_y": down * shape[-2]}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        ones, zero = torch.ones_like(params["translate_x"]), torch.zeros_like(params["translate_x"])
        return matrix(ones, zero, params["translate_x"], zero, ones, params["translate_y"])
