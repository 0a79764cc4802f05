"""A crop of fixed size at a random position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.geometry import axis_map
from augment.kornia_ops.crop import PADDING, Cut, SizeError


class RandomCrop(Cut):
    """A box of fixed size at a random position in the padded image.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomCrop")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomCrop(K.RandomCrop((2, 2)))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.1250, 0.2500],
                [0.5000, 0.6250]])
    """

    wraps = "RandomCrop"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        self.size = tuple(module.flags["size"])
        self.stays_inside = module.flags["padding"] is None and not module.flags["pad_if_needed"]
        self.padding = PADDING[module.flags["padding_mode"]]

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        flags = module.flags
        if flags["cropping_mode"] != "slice":
            return f"cropping_mode={flags['cropping_mode']!r}"
        if flags["fill"] != 0:
            return f"fill={flags['fill']!r}"
        return None if flags["padding_mode"] in PADDING else f"padding_mode={flags['padding_mode']!r}"

    def margins(self, shape: torch.Size) -> tuple[int, int, int, int]:
        """Padding (left, right, top, bottom) of images of ``shape``."""
        left, right, top, bottom = self.module.compute_padding(tuple(shape))
        return left, right, top, bottom

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        left, right, top, bottom = self.margins(shape)
        height, width = shape[-2] + top + bottom, shape[-1] + left + right
        if height < self.size[0] or width < self.size[1]:
            raise SizeError(
                f"RandomCrop cuts out {self.size[0]} x {self.size[1]} pixels, but every sample of the batch has "
                f"{height} x {width}{' with its padding' if left or top else ''}; give it padding or pad_if_needed"
            )
        x = (u[:, 0] * (width - self.size[1] + 1)).floor()
        y = (u[:, 1] * (height - self.size[0] + 1)).floor()
        return self.box(x, y, self.size[1], self.size[0])

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        left, _, top, _ = self.margins(shape)
        corner = params["src"][:, 0]
        ones = torch.ones_like(corner[:, 0])
        return axis_map(ones, corner[:, 0] - left, ones, corner[:, 1] - top)

    def for_kornia(self, params: dict[str, Tensor], shape: torch.Size) -> dict[str, Tensor]:
        left, right, top, bottom = margins = self.margins(shape)
        padded = torch.tensor([*shape[:2], shape[2] + top + bottom, shape[3] + left + right])
        return {**params, "padding_size": torch.tensor(margins).expand(shape[0], -1), "forward_input_shape": padded}
