"""RanPAC: ridge regression in random features.

``h = relu(f R)`` with R [D, M] of standard normal numbers, then ridge regression in h (see ``ridge``). R follows from
the seed and is stored nowhere.

Serves M · K numbers. It is not linear in f: the served network gets it as a module in place of its classifier. Keeps n,
S and G of h: M² numbers.

Paper: McDonnell et al., RanPAC, arXiv 2307.02251. Deviations: the width is 2,500 instead of 10,000, for which G has 50
MB instead of 800 MB (in float64); λ is relative to the mean diagonal of G, and given or chosen: ``choose: held_out`` by
the held-out images of the newest task, as in the paper, ``held_out_mse`` by those of all tasks so far, whose sums are
kept. Adapting the backbone on the first task, as the paper
does, is left to the strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distill.continual.heads.base import FittedHead
from distill.continual.heads.ridge import RidgeHead, RidgeSettings
from distill.continual.heads.sums import Sums
from distill.models.closed_form_head import RandomFeatureClassifier, projection


class RandomRidge(RidgeHead):
    """``h = relu(f R)``, ``W = (G + λ · mean diag(G) · I)⁻¹ S`` with the sums of h.

    >>> import torch
    >>> from distill.continual.heads.random_ridge import RandomRidge
    >>> head = RandomRidge(RandomRidge.Settings(width=200))
    >>> sums = head.new_sums(2)
    >>> corners = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]) - 0.5
    >>> head.update(sums, corners, torch.tensor([1, 1, 0, 0]), ["equal", "different"])  # no linear head can learn this
    >>> fitted = head.fit(sums)
    >>> [fitted.classes[k] for k in fitted.logits(corners).argmax(1)]
    ['different', 'different', 'equal', 'equal']
    """

    class Settings(RidgeSettings):
        type: Literal["random_ridge"] = "random_ridge"
        width: int = Field(2500, ge=1, description="M, number of random features; G takes 8 · M² bytes")
        seed: int = Field(0, ge=0, description="of the random projection")

    settings: Settings
    paper: ClassVar[str] = "McDonnell et al. 2023, arXiv 2307.02251"

    @property
    def sums_key(self) -> str:
        return f"random {self.settings.width} seed {self.settings.seed}"

    def mapped_width(self, width: int) -> int:
        return self.settings.width

    def map(self, features_ND: Tensor) -> Tensor:
        features_ND = features_ND.detach().cpu().double()
        return (features_ND @ projection(features_ND.shape[1], self.settings.width, self.settings.seed)).relu_()

    def classifier(self, tensors: Mapping[str, Tensor], width: int) -> RandomFeatureClassifier:
        weight_KM = tensors["weight"]
        module = RandomFeatureClassifier(width, self.settings.width, len(weight_KM), self.settings.seed)
        module.load_state_dict({"weight": weight_KM})
        return module

    def _fitted(self, sums: Sums, weight_MK: Tensor) -> RandomRidgeHead:
        return RandomRidgeHead(self, sums.classes, weight_MK)


class RandomRidgeHead(FittedHead):
    """A fitted ``random_ridge``."""

    def __init__(self, head: RandomRidge, classes: tuple[str, ...], weight_MK: Tensor):
        self.head, self.classes, self.weight = head, classes, weight_MK

    def scores(self, features_ND: Tensor) -> Tensor:
        return self.head.map(features_ND) @ self.weight

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight.T.float().contiguous()}
