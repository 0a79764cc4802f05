"""Prototypes: an image belongs to the class whose mean support feature is nearest.

``−‖f − c_k‖²/2``, which folds as ``w_k = c_k``, ``b_k = −‖c_k‖²/2``; the same head as ``ncm`` in a stream of tasks.

Paper: Snell et al., Prototypical networks for few-shot learning, arXiv 1703.05175. There the features are trained by
episodes; here they are those of a frozen network.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from distill.continual.heads.ncm import nearest_mean
from distill.transfer.few_shot.base import FewShotHead, Support


class Prototype(FewShotHead):
    """``−‖f − c_k‖²/2``, c_k the mean support feature of class k.

    >>> import torch
    >>> from distill.transfer.few_shot.prototype import Prototype
    >>> head = Prototype(Prototype.Settings())
    >>> fitted = head.fit(torch.tensor([[0.0, 1.0], [4.0, 1.0]]), torch.tensor([0, 1]), ["ash", "oak"])
    >>> fitted.logits(torch.tensor([[1.0, 9.0], [3.0, 9.0]])).argmax(1).tolist()
    [0, 1]
    """

    class Settings(FewShotHead.Settings):
        type: Literal["prototype"] = "prototype"

    settings: Settings
    paper: ClassVar[str] = "Snell et al. 2017, arXiv 1703.05175"

    def solve(self, support: Support) -> tuple[Tensor, Tensor]:
        return nearest_mean(support.means.mT)
