"""Warp, the base of rotation, shear, translation, affine maps and perspective."""

from __future__ import annotations

from typing import Any

import torch

from augment.kornia_ops.base import FusedKorniaOp


class Warp(FusedKorniaOp):
    """Base of the operations that apply a homography about the middle of the image."""

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


def sampler_ends(sampler: Any) -> tuple[float, float] | None:
    """(lowest, highest) of one of kornia's samplers; None without one."""
    return None if sampler is None else (float(sampler.low), float(sampler.high))
