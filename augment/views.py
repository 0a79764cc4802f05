"""Views, the output of :class:`augment.dual.DualAugment`, and InputSpec, the input that a network expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings are read without torch, and need InputSpec
    from torch import Tensor


@dataclass(frozen=True)
class InputSpec:
    """The input that a network expects: size in pixels (height, width) and normalization, channel by channel.

    Images are RGB in [0, 1]. Other domains have as many channels as ``mean`` and ``std`` are long, and
    ``bounded=False``: spectrograms [B, C, F, T], say, are floats of any size, so nothing is clamped.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bounded: bool = True


@dataclass(frozen=True)
class Mix:
    """The partner that each sample of a batch was mixed with, and the weight of its own image in each view.

    A view with weight λ has the target λ · own class + (1 − λ) · partner's class.
    """

    partner: Tensor
    """[B] int64, the partner's row."""
    teacher: tuple[tuple[float, ...], ...]
    """Weights, laid out as ``Views.teacher``."""
    student: tuple[float, ...]


ViewPixels = Mapping[str, "Tensor"]
"""Name of a view → its pixels [B, 3, h, w] uint8 or uint16: views that are not yet normalized, or mixed."""


@dataclass(frozen=True)
class Views:
    """The views of one batch, normalized floats [B, 3, H, W] on the device.

    ``teacher[n][v]`` is view v as network n of the teacher expects it (size, mean, std), ``student[v]`` likewise;
    ``pairs`` lists the (teacher view, student view) pairs that objectives compare; ``mix`` says what was mixed.
    """

    teacher: tuple[tuple[Tensor, ...], ...]
    student: tuple[Tensor, ...]
    pairs: tuple[tuple[int, int], ...] = ((0, 0),)
    mix: Mix | None = None
