"""Nearest class mean: an image belongs to the class whose mean feature is nearest.

Euclidean: ``−‖f − μ_c‖²/2``, of which the part that is equal for all classes is left out: with m the mean of the class
means, ``w_c = μ_c − m`` and ``b_c = (‖m‖² − ‖μ_c‖²) / 2``. Cosine: ``w_c = μ_c / ‖μ_c‖`` and ``b = 0``, which has the
same argmax as the cosine similarity.

Serves K · (D + 1) numbers and keeps n and S. Paper: Mensink et al., TPAMI 2013; Rebuffi et al., arXiv 1611.07725.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from distill.continual.heads.base import Head, LabeledFeatures
from distill.continual.heads.linear import LinearHead
from distill.continual.heads.sums import Moments, Sums


def nearest_mean(means_DK: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of the Euclidean rule, or of a batch; subtracting m keeps large common offsets out."""
    center_D1 = means_DK.mean(dim=-1, keepdim=True)
    bias_K = (center_D1.square().sum(-2) - means_DK.square().sum(-2)) / 2
    return (means_DK - center_D1).mT, bias_K


class NearestClassMean(Head):
    """``−‖f − μ_c‖²/2`` or ``fᵀ μ_c / ‖μ_c‖``.

    >>> import torch
    >>> from distill.continual.heads.ncm import NearestClassMean
    >>> head = NearestClassMean(NearestClassMean.Settings())
    >>> sums = head.new_sums(2)
    >>> head.update(sums, torch.tensor([[0.0, 1.0], [4.0, 1.0]]), torch.tensor([0, 1]), ["ash", "oak"])
    >>> head.fit(sums).logits(torch.tensor([[1.0, 9.0], [3.0, 9.0]])).argmax(1).tolist()
    [0, 1]
    """

    class Settings(Head.Settings):
        type: Literal["ncm"] = "ncm"
        distance: Literal["euclid", "cosine"] = Field("euclid", description="between a feature and a class mean")

    settings: Settings
    paper: ClassVar[str] = "Mensink et al. 2013"
    moments: ClassVar[Moments] = "none"

    def _fit(self, sums: Sums, held_out: LabeledFeatures | None, held_out_sums: Sums | None) -> LinearHead:
        if self.settings.distance == "euclid":
            return LinearHead(sums.classes, *nearest_mean(sums.means))
        weight_KD = F.normalize(sums.means.T, dim=1)
        return LinearHead(sums.classes, weight_KD, weight_KD.new_zeros(len(weight_KD)))
