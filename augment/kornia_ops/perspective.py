"""Perspective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.warp import Warp


class RandomPerspective(Warp):
    """The homography that moves the corners to random positions.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomPerspective")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomPerspective(K.RandomPerspective(0.5, p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.1381, 0.0894],
                [0.2871, 0.5429, 0.3354],
                [0.0000, 0.2760, 0.5344]])
    """

    wraps = "RandomPerspective"
    uniforms = 8

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.distortion, self.method = float(sampler.distortion_scale), sampler.sampling_method

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        # An image one pixel wide has no width to distort; kornia gives it a fixed unit box.
        (right, width), (bottom, height) = ((1, 0) if side == 1 else (side - 1, side) for side in shape[:-3:-1])
        zero = torch.zeros_like(u[:, 0])
        start = torch.stack([zero, zero, zero + right, zero, zero + right, zero + bottom, zero, zero + bottom], 1)
        u = u.view(-1, 4, 2)
        if self.method == "area_preserving":
            move = 2 * (u - 0.5)
        else:
            inward_x = torch.stack([u[:, 0, 0], -u[:, 1, 0], -u[:, 2, 0], u[:, 3, 0]], 1)
            inward_y = torch.stack([u[:, 0, 1], u[:, 1, 1], -u[:, 2, 1], -u[:, 3, 1]], 1)
            move = torch.stack([inward_x, inward_y], 2)
        reach = torch.stack([zero + self.distortion * width / 2, zero + self.distortion * height / 2], 1)
        start = start.view(-1, 4, 2)
        return {"start_points": start, "end_points": start + move * reach[:, None]}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        from kornia.geometry.transform import get_perspective_transform

        return get_perspective_transform(params["start_points"], params["end_points"])
