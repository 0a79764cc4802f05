"""A segment of a plan as instructions of the C library, and the last write, shared with torch's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from augment.fuse.color import Params, per_channel
from augment.fuse.geometry import composed, output_size
from augment.fuse.passes import PADDINGS, Instruction, Kind, carried_out, instruction, linear
from augment.fuse.planner import Pass, PlannedOp
from augment.views import InputSpec


@dataclass(frozen=True)
class Finish:
    """The last write: resized to ``size``, clamped if anything may have left [0, 1], normalized for ``spec``, cast."""

    size: tuple[int, int]
    clamp: bool
    spec: InputSpec | None = None
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        x = resized(x, self.size)
        if self.clamp:
            x = x.clamp(0, 1)
        if self.spec is not None:
            x = normalized(x, self.spec)
        return x.to(self.dtype)

    def linear(self, images: Tensor) -> list[Instruction]:
        """The clamp and the normalization of images [B, C, H, W] that have their size."""
        if self.spec is None and not self.clamp:
            return []
        channels = images.shape[1]
        mean, std = (self.spec.mean, self.spec.std) if self.spec else ((0.0,) * channels, (1.0,) * channels)
        every = torch.ones(len(images))
        scale, shift = [1 / d for d in std], [-m / d for m, d in zip(mean, std)]
        return [linear(every, channels, scale, shift, (self.clamp, False))]


WHITE = {torch.uint8: 255, torch.uint16: 65535}
"""Type of images → its value of white."""


def to_unit(images: Tensor) -> Tensor:
    """Floats in [0, 1] from uint8 or uint16; float images are taken as being in [0, 1] already."""
    if images.dtype in WHITE:
        return images.float().mul_(1 / WHITE[images.dtype])
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8 or uint16, or floats in [0, 1], not {images.dtype}")
    return images.float()


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, as PIL does it; the same tensor when the size is right."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def normalized(images: Tensor, spec: InputSpec) -> Tensor:
    """``(x - mean) / std`` per channel, for x in [0, 1]."""
    scale = tuple(1 / std for std in spec.std)
    shift = tuple(-mean / std for mean, std in zip(spec.mean, spec.std))
    # Not addcmul: with two operands by channel it is not vectorized on a CPU, and slower than two passes.
    return (images * per_channel(scale, images)).add_(per_channel(shift, images))


def run_in_c(passes: Sequence[Pass], images: Tensor, params: dict[int, Params], finish: Finish | None) -> Tensor:
    """Run all passes in C.

    Args:
        passes: in order.
        images: [B, C, H, W], uint8 or floats.
        params: the parameters of each step, by its index in the recipe.
        finish: clamping, size and normalization; None: neither.

    Returns:
        [B, C, h, w] floats.
    """
    instructions: list[Instruction] = []
    x = images if images.dtype == torch.uint8 else images.float()

    def made() -> Tensor:
        return carried_out(instructions, x, (shape[-2], shape[-1])) if instructions else x

    shape = x.shape
    for pass_ in passes:
        if pass_.kind == "geometry" and instructions:  # reading comes first
            x, instructions = made(), []
        after = shape_after_all(pass_, shape)
        instructions += [_INSTRUCTION[str(pass_.steps[0].operation.form)](pass_, params, shape)]
        shape = after
    if finish is None or tuple(shape[-2:]) != tuple(finish.size):
        return made() if finish is None else finish(made())
    instructions += finish.linear(x)
    return made().to(finish.dtype)


def _read(pass_: Pass, params: dict[int, Params], shape: torch.Size) -> Instruction:
    back, _, _ = composed([(step.user, params[step.index]) for step in pass_.steps], shape)
    numbers = back[:, [0, 0, 1, 1], [0, 2, 1, 2]]
    return Instruction(Kind.READ, numbers, PADDINGS.index(pass_.reading[1]))


def _change(pass_: Pass, params: dict[int, Params], shape: torch.Size) -> Instruction:
    (step,) = pass_.steps
    return step.user.instruction(params[step.index], shape)


def _filter(pass_: Pass, params: dict[int, Params], shape: torch.Size) -> Instruction:
    (step,) = pass_.steps
    own = params[step.index]
    vertical, horizontal = step.user.kernel(own, shape)
    for kernel, side, what in zip((vertical, horizontal), shape[-2:], ("high", "wide")):
        if kernel.shape[1] // 2 >= side:
            long = f"{step.operation.name} filters with {kernel.shape[1]} numbers, reflected at the border, but"
            raise ValueError(f"{long} the images are only {side} {what}; take a shorter kernel")
    sizes = {"first": vertical.shape[1], "second": horizontal.shape[1]}
    return instruction(Kind.BLUR, _drawn(own, shape), vertical, horizontal, **sizes)


def _erase(pass_: Pass, params: dict[int, Params], shape: torch.Size) -> Instruction:
    (step,) = pass_.steps
    boxes, values = step.user.erase(params[step.index], shape)
    every = values.view(shape[0], -1).expand(-1, shape[1])
    return instruction(Kind.ERASE, _drawn(params[step.index], shape), boxes, every)


def _drawn(params: Params, shape: torch.Size) -> Tensor:
    drawn = params.get("drawn")
    return torch.ones(shape[0], dtype=torch.bool) if drawn is None else drawn


_INSTRUCTION: dict[str, Callable[[Pass, dict[int, Params], torch.Size], Instruction]] = {
    "affine": _read,
    "color": _change,
    "kernel": _filter,
    "erase": _erase,
}


def shape_after(step: PlannedOp, shape: torch.Size) -> torch.Size:
    return torch.Size((*shape[:2], *output_size(step.user, shape))) if step.operation.form == "affine" else shape


def shape_after_all(pass_: Pass, shape: torch.Size) -> torch.Size:
    for step in pass_.steps:
        shape = shape_after(step, shape)
    return shape
