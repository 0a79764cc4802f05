"""Resizing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.geometry import axis_map
from augment.kornia_ops.crop import Cut, unfit_resampling


class Resize(Cut):
    """The whole image at another size, without antialiasing unless ``antialias`` is set.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Resize")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = Resize(K.Resize((2, 2)))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.2500],
                [0.7500, 1.0000]])
    """

    wraps = "Resize"

    def __init__(self, module: Any):
        super().__init__(module)
        self.asked, self.side = module.flags["size"], module.flags["side"]
        self.aligned = module.flags["align_corners"]
        self.padding = "zeros" if self.aligned else "border"
        self.stays_inside = self.aligned

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        return unfit_resampling(module.flags) or ("antialias=True" if module.flags["antialias"] else None)

    def output_size(self, shape: torch.Size) -> tuple[int, int]:
        if not isinstance(self.asked, int):
            return tuple(self.asked)
        from kornia.geometry.transform.affwarp import _side_to_image_size

        height, width = _side_to_image_size(self.asked, shape[-1] / shape[-2], self.side)
        return height, width

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        self.size = self.output_size(shape)
        zero = u.new_zeros(len(u))
        return self.box(zero, zero, shape[-1], shape[-2])

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        if self.aligned:
            return super().pullback(params, shape)
        height, width = self.output_size(shape)
        ones = torch.ones_like(params["src"][:, 0, 0])
        across, down = shape[-1] / width * ones, shape[-2] / height * ones
        return axis_map(across, across / 2 - 0.5, down, down / 2 - 0.5)

    def for_kornia(self, params: dict[str, Tensor], shape: torch.Size) -> dict[str, Tensor]:
        return {**params, "output_size": torch.tensor(self.output_size(shape)).expand(shape[0], -1)}
