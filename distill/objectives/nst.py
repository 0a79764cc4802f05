"""Neuron selectivity transfer: matches the distributions of the networks' neurons, as functions of position.

Shape suffixes: B batch, C channels, H W map size, N = H · W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.objectives.stages import MapObjective, Stages, on_one_grid, stages_field


def nst(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """[B]: squared maximum mean discrepancy between the two sets of neurons.

    A neuron is the vector of a channel's activations at the N positions, normalized to length 1. With the kernel ``k(x,
    y) = (x·y)²``::

        L = mean k(t, t') + mean k(s, s') − 2 mean k(s, t)

    over all pairs of channels. Never negative; zero if the networks' mean outer products of neurons are equal, as for
    equal maps. Maps of different sizes are average-pooled to the smaller grid; the numbers of channels may differ.
    """
    student_BCHW, teacher_BCHW = on_one_grid(student_BCHW, teacher_BCHW)
    # mean k(x, y) = <M_x, M_y> with M = mean of x xᵀ [N, N]. This needs no pairs of channels, and the three terms
    # become one squared norm, which rounding cannot make negative.
    moments = []
    for map_ in (student_BCHW, teacher_BCHW):
        neurons_BCN = F.normalize(map_.flatten(2), dim=2)
        moments.append(neurons_BCN.transpose(1, 2) @ neurons_BCN / map_.shape[1])
    return (moments[0] - moments[1]).square().sum((1, 2))


class NST(MapObjective):
    """Neuron selectivity transfer with the polynomial kernel: :func:`nst` summed over the stages, mean over the batch.

    Paper: Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv
    1707.01219, kernel of degree 2 and offset 0; weight 50.

    Memory: two [N, N] matrices per sample and stage. N is 3,136 for a 56 × 56 map (39 MB each), so choose late
    ``stages`` for large inputs.

    Example:
        >>> import torch, distill
        >>> nst = distill.create_objective("nst")
        >>> map_ = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> student, teacher = (distill.Features(maps={"last": m}) for m in (map_.repeat(1, 2, 1, 1), map_))
        >>> nst(student, teacher, distill.Targets(labels=torch.tensor([0]))).item()  # channels may differ in number
        0.0
    """

    class Settings(MapObjective.Settings):
        type: Literal["nst"] = "nst"
        weight: float = Field(50.0, ge=0, description="factor of this term in the sum")
        stages: Stages = stages_field("last")

    paper: ClassVar[str] = "Huang and Wang 2017, arXiv 1707.01219"

    settings: Settings

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        return sum(nst(*pair) for pair in maps)  # type: ignore[return-value]
