"""Crops and resizing: axis-aligned maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from augment.base import UserError
from augment.fuse.geometry import axis_map, inverse
from augment.kornia_ops.base import FusedKorniaOp, limits, ranged


class SizeError(UserError, ValueError):
    """Images are smaller than what an operation cuts out of them; the text names both."""


def corners(left: Tensor, top: Tensor, width: Tensor | int, height: Tensor | int) -> Tensor:
    """Corners of boxes.

    Args:
        left: [B], x of the left edge.
        top: [B], y of the top edge.
        width: in pixels, [B] or one for all.
        height: in pixels, [B] or one for all.

    Returns:
        [B, 4, 2] as (x, y), clockwise from the top left, as kornia orders them.
    """
    right, bottom = left + width - 1, top + height - 1
    return torch.stack([left, top, right, top, right, bottom, left, bottom], 1).view(-1, 4, 2)


class _Cut(FusedKorniaOp):
    axis_aligned = stays_inside = True
    size: tuple[int, int]

    def output_size(self, shape: torch.Size) -> tuple[int, int]:
        return self.size

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return inverse(self.pullback(params, shape))

    def box(self, left: Tensor, top: Tensor, width: Tensor | int, height: Tensor | int) -> dict[str, Tensor]:
        zero = torch.zeros_like(left)
        return {"src": corners(left, top, width, height), "dst": corners(zero, zero, self.size[1], self.size[0])}

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        """The corners of ``dst`` come from those of ``src``: x ↦ left + x · (right - left) / (w - 1)."""
        first, last = params["src"][:, 0], params["src"][:, 2]
        height, width = self.size
        extent = last - first
        across, down = extent[:, 0] / max(width - 1, 1), extent[:, 1] / max(height - 1, 1)
        return axis_map(across, first[:, 0], down, first[:, 1])


class RandomResizedCrop(_Cut):
    """A box of random area and aspect ratio, resized: the first of ten tries that fits into the image, else the largest
    box within the aspect ratios; at a random position.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomResizedCrop")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomResizedCrop(K.RandomResizedCrop((2, 2), scale=(0.3, 1.0)))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.1250, 0.2500],
                [0.5000, 0.6250]])
    """

    wraps = "RandomResizedCrop"
    uniforms = 22
    tries = 10

    def __init__(self, module: Any):
        super().__init__(module)
        generator = module._param_generator
        self.size = tuple(module.flags["size"])
        self.scale, self.ratio = limits(generator.scale), limits(generator.ratio)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        flags = module.flags
        if flags["cropping_mode"] != "slice":
            return f"cropping_mode={flags['cropping_mode']!r}"
        return _unfit_resampling(flags) or (None if flags["align_corners"] else "align_corners=False")

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        H, W = shape[-2:]
        area = ranged(u[:, : self.tries], *self.scale) * (H * W)
        ratio = ranged(u[:, self.tries : -2], *(math.log(end) for end in self.ratio)).exp()
        width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (width >= 1) & (width <= W) & (height >= 1) & (height <= H)
        # The first that fits: the largest of (tries, …, 1) where it does; 0 where none does.
        rank = torch.arange(self.tries, 0, -1, device=u.device)
        best, chosen = (fits * rank).max(1)
        tall, wide = _fallback(H, W, *self.ratio)
        width = torch.where(best > 0, width.gather(1, chosen[:, None])[:, 0], float(wide))
        height = torch.where(best > 0, height.gather(1, chosen[:, None])[:, 0], float(tall))
        left, top = (u[:, -2] * (W - width + 1)).floor(), (u[:, -1] * (H - height + 1)).floor()
        return self.box(left, top, width, height)


def _fallback(H: int, W: int, low: float, high: float) -> tuple[int, int]:
    """The largest box within the ratios: (height, width)."""
    ratio = W / H
    if ratio < low:
        return min(max(round(W / low), 1), H), W
    if ratio > high:
        return H, min(max(round(H * high), 1), W)
    return H, W


class RandomCrop(_Cut):
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
        self.padding = _PADDING[module.flags["padding_mode"]]

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        flags = module.flags
        if flags["cropping_mode"] != "slice":
            return f"cropping_mode={flags['cropping_mode']!r}"
        if flags["fill"] != 0:
            return f"fill={flags['fill']!r}"
        return None if flags["padding_mode"] in _PADDING else f"padding_mode={flags['padding_mode']!r}"

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


class CenterCrop(_Cut):
    """The middle of the image.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("CenterCrop")
        >>> images = torch.arange(16.0).view(1, 1, 4, 4) / 15
        >>> op = CenterCrop(K.CenterCrop((2, 2)))
        >>> op.apply(images, op.sample(draws, images.shape)).mul(15)[0, 0]
        tensor([[ 5.,  6.],
                [ 9., 10.]])
    """

    wraps = "CenterCrop"

    def __init__(self, module: Any):
        super().__init__(module)
        self.size = tuple(module.size)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        mode = module.flags["cropping_mode"]
        return None if mode == "slice" else f"cropping_mode={mode!r}"

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        height, width = shape[-2:]
        if height < self.size[0] or width < self.size[1]:
            raise SizeError(
                f"CenterCrop cuts out {self.size[0]} x {self.size[1]} pixels, but every sample of the batch has "
                f"{height} x {width}; pad or resize first"
            )
        zero = u.new_zeros(len(u))
        return self.box(zero + (width - self.size[1]) // 2, zero + (height - self.size[0]) // 2, *self.size[::-1])


class Resize(_Cut):
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
        return _unfit_resampling(module.flags) or ("antialias=True" if module.flags["antialias"] else None)

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


_PADDING = {"constant": "zeros", "replicate": "border", "reflect": "reflection"}


def _unfit_resampling(flags: dict[str, Any]) -> str | None:
    mode = flags["resample"].name.lower()
    return None if mode == "bilinear" else f"resample={mode!r}"
