"""Attention transfer: matches the networks' spatial maps of activation strength.

Shape suffixes: B batch, C channels, H W map size, N = H · W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.objectives.stages import MapObjective, on_one_grid


def attention(map_BCHW: Tensor) -> Tensor:
    """[B, N]: the mean over channels of F², normalized to length 1 per sample; 0 if the map is zero."""
    return F.normalize(map_BCHW.square().mean(dim=1).flatten(1))


def at(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """[B]: ``mean((a(F_s) − a(F_t))²)`` over the pixels, with ``a(F) = mean_c F_c² / ‖mean_c F_c²‖``.

    Maps of different sizes are average-pooled to the smaller grid. The numbers of channels may differ. Zero if the two
    attention maps are equal.
    """
    student_BCHW, teacher_BCHW = on_one_grid(student_BCHW, teacher_BCHW)
    return F.mse_loss(attention(student_BCHW), attention(teacher_BCHW), reduction="none").mean(1)


class AT(MapObjective):
    """Attention transfer: the sum of :func:`at` over the matched stages, mean over the batch.

    Paper: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928. The weight is β of
    their code, 1000, for the mean over pixels.

    Deviation: both maps are pooled to the smaller height and width; their code pools both to the smaller height.

    Example:
        >>> import torch, distill
        >>> at = distill.create_objective("at")
        >>> map_ = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> student, teacher = distill.Features(maps={"last": -map_}), distill.Features(maps={"last": 2 * map_})
        >>> at(student, teacher, distill.Targets(labels=torch.tensor([0]))).item()  # sign and scale do not count
        0.0
    """

    class Settings(MapObjective.Settings):
        type: Literal["at"] = "at"
        weight: float = Field(1000.0, ge=0, description="factor of this term in the sum")

    paper: ClassVar[str] = "Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928"

    settings: Settings

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        return sum(at(*pair) for pair in maps)  # type: ignore[return-value]
