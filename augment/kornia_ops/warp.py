"""Rotation, shear, translation, affine maps and perspective: homographies about the middle of the image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from augment.fuse.geometry import matrix
from augment.kornia_ops.base import FusedKorniaOp, limits, ranged


class _Warp(FusedKorniaOp):
    def __init__(self, module: Any):
        super().__init__(module)
        flags = module.flags
        mode = flags["padding_mode"].name.lower() if "padding_mode" in flags else "zeros"
        self.padding = "symmetric" if mode == "reflection" and not flags["align_corners"] else mode

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        flags = module.flags
        if flags["resample"].name.lower() != "bilinear":
            return f"resample={flags['resample'].name.lower()!r}"
        if "padding_mode" in flags and flags["padding_mode"].name.lower() == "fill":
            return "padding_mode='fill'"
        return None


def middle(shape: torch.Size) -> tuple[float, float]:
    """(x, y) of the middle of the image in pixels."""
    return (shape[-1] - 1) / 2, (shape[-2] - 1) / 2


def rotation(degrees: Tensor, center: tuple[float, float], scale: Tensor | None = None) -> Tensor:
    """Rotation and scaling about a point.

    Args:
        degrees: [B], counterclockwise in the displayed image.
        center: (x, y) in pixels.
        scale: [B, 2] along x and y, applied first; None: 1.

    Returns:
        [B, 3, 3], source → destination.
    """
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    across, down = (torch.ones_like(cos),) * 2 if scale is None else scale.unbind(1)
    a, b, d, e = cos * across, sin * down, -sin * across, cos * down
    x, y = center
    return matrix(a, b, x - a * x - b * y, d, e, y - d * x - e * y)


def shear(degrees_x: Tensor, degrees_y: Tensor, center: tuple[float, float]) -> Tensor:
    """Shear about a point, as kornia defines it.

    Args:
        degrees_x: [B], along x.
        degrees_y: [B], along y, applied second.
        center: (x, y) in pixels, which stays in place.

    Returns:
        [B, 3, 3], source → destination.
    """
    u, v = (degrees_x * (math.pi / 180)).tan(), (degrees_y * (math.pi / 180)).tan()
    x, y = center
    return matrix(torch.ones_like(u), -u, u * y, -v, 1 + u * v, v * (x - u * y))


class RandomAffine(_Warp):
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
        self.ends = {name: _ends(getattr(sampler, f"{name}_sampler")) for name in _AFFINE}

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


def _ends(sampler: Any) -> tuple[float, float] | None:
    return None if sampler is None else (float(sampler.low), float(sampler.high))


class RandomRotation(_Warp):
    """Rotation by an angle in degrees about the middle.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomRotation")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomRotation(K.RandomRotation((90.0, 90.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.2500, 0.6250, 1.0000],
                [0.1250, 0.5000, 0.8750],
                [0.0000, 0.3750, 0.7500]])
    """

    wraps = "RandomRotation"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        self.degrees = limits(module._param_generator.degrees)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"degrees": ranged(u[:, 0], *self.degrees)}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return rotation(params["degrees"], middle(shape))


class RandomRotation90(_Warp):
    """Rotation by a multiple of 90 degrees about the middle; the frame stays.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomRotation90")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomRotation90(K.RandomRotation90(times=(1, 1), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.2500, 0.6250, 1.0000],
                [0.1250, 0.5000, 0.8750],
                [0.0000, 0.3750, 0.7500]])
    """

    wraps = "RandomRotation90"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        self.times = limits(module._param_generator.times)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"times": ranged(u[:, 0], *self.times)}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return rotation(90 * params["times"].round(), middle(shape))


class RandomShear(_Warp):
    """Shear by angles in degrees about the middle.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomShear")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomShear(K.RandomShear((45.0, 45.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.0000, 0.1250],
                [0.3750, 0.5000, 0.6250],
                [0.8750, 1.0000, 0.0000]])
    """

    wraps = "RandomShear"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.across, self.down = limits(sampler.shear_x), limits(sampler.shear_y)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        x, y = middle(shape)
        center = torch.stack([torch.full_like(u[:, 0], x), torch.full_like(u[:, 0], y)], 1)
        return {"shear_x": ranged(u[:, 0], *self.across), "shear_y": ranged(u[:, 1], *self.down), "center": center}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return shear(params["shear_x"], params["shear_y"], middle(shape))


class RandomTranslate(_Warp):
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
        ends = (_ends(sampler.translate_x_sampler), _ends(sampler.translate_y_sampler))
        self.across, self.down = ((0.0, 0.0) if end is None else end for end in ends)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        across, down = ranged(u[:, 0], *self.across), ranged(u[:, 1], *self.down)
        return {"translate_x": across * shape[-1], "translate_y": down * shape[-2]}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        ones, zero = torch.ones_like(params["translate_x"]), torch.zeros_like(params["translate_x"])
        return matrix(ones, zero, params["translate_x"], zero, ones, params["translate_y"])


class RandomPerspective(_Warp):
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
