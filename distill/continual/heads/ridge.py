"""Ridge regression on one-hot labels, from sums.

``W = (G + λ · mean diag(G) · I)⁻¹ S``, logits ``f W``, without a bias. S is the product of features and one-hot labels,
so that sums are all that the joint fit reads. λ is relative to the mean diagonal of G: it depends neither on the scale
of the features nor on the number of images.

λ is given (0.1 is best, or nearly, on held-out images of flowers61 and CIFAR-100 with a frozen EfficientNet-Lite0), or
chosen from ``PENALTIES``: by the accuracy on held-out images, in a stream those of the newest task, or by their mean
squared error, for which their sums are enough, in a stream those of all tasks so far:
``n − 2 tr(Wᵀ S_h) + tr(Wᵀ G_h W)``. Of equally good ones, the largest is taken. (Generalized
cross-validation, which needs no held-out images, degenerates when there are fewer images than features.)

Serves K · (D + 1) numbers and keeps n, S and G. Papers: Zhuang et al., ACIL, arXiv 2205.14922 (there recursive and
after a random layer, which ``random_ridge`` has); McDonnell et al., RanPAC, arXiv 2307.02251.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from augment.base import error_at
from distill.continual.errors import ContinualError
from distill.continual.heads.base import FittedHead, Head, LabeledFeatures
from distill.continual.heads.linear import LinearHead
from distill.continual.heads.linear_algebra import mean_square, solve
from distill.continual.heads.sums import Sums

PENALTIES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)


def ridge(sums: Sums, penalty: float) -> Tensor:
    """W [D, K] of ridge regression; zero if all features are.

    Args:
        sums: G and S.
        penalty: λ, relative to the mean diagonal of G.
    """
    scale = mean_square(sums.seconds) or 1.0
    identity_DD = torch.eye(sums.width, dtype=sums.seconds.dtype)
    return solve(sums.seconds + penalty * scale * identity_DD, sums.firsts)


def squared_error(weight_DK: Tensor, classes: tuple[str, ...], held_out: Sums) -> float:
    """Mean squared error on one-hot labels of held-out images, per image.

    Args:
        weight_DK: W.
        classes: names of its columns; every class of the held-out images must be among them.
        held_out: sums of these images.

    Returns:
        ``(n − 2 tr(Wᵀ S_h) + tr(Wᵀ G_h W)) / n``.

    Raises:
        ContinualError: there is no held-out image, or one of another class.
    """
    if not held_out.images:
        raise ContinualError("the squared error needs at least one held-out image")
    if unknown := sorted(set(held_out.classes) - set(classes)):
        raise ContinualError(f"held-out images have classes that the head does not: {', '.join(unknown)}")
    agreement = (weight_DK * held_out.first_moments_of(classes)).sum()
    energy = (weight_DK * (held_out.seconds @ weight_DK)).sum()
    return ((held_out.images - 2 * agreement + energy) / held_out.images).item()


class RidgeSettings(Head.Settings):
    penalty: float = Field(0.1, gt=0, description="λ, in units of the mean diagonal of the features' second moments")
    choose: Literal["held_out", "held_out_mse"] | None = Field(
        None,
        description="choose λ instead, held_out: by the accuracy on held-out images, in a stream those of the newest "
        "task · held_out_mse: by the squared error on those of all tasks so far, of which sums are kept",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> RidgeSettings:
        if self.choose is not None and "penalty" in self.model_fields_set:
            raise error_at("penalty", f"is chosen by {self.choose}: leave out penalty or choose")
        return self


class RidgeHead(Head):
    """Ridge regression in the features that ``map`` gives."""

    settings: RidgeSettings

    @property
    def needs(self) -> frozenset[Literal["held_out", "held_out_sums"]]:
        if self.settings.choose is None:
            return frozenset()
        return frozenset({"held_out" if self.settings.choose == "held_out" else "held_out_sums"})

    def _fit(self, sums: Sums, held_out: LabeledFeatures | None, held_out_sums: Sums | None) -> FittedHead:
        return self._fitted(sums, ridge(sums, self.chosen_penalty(sums, held_out, held_out_sums)))

    def chosen_penalty(
        self, sums: Sums, held_out: LabeledFeatures | None = None, held_out_sums: Sums | None = None
    ) -> float:
        """λ of the settings, or the one of ``PENALTIES`` that they choose; the arguments are those of ``fit``.

        To fit on the held-out images too, give the λ chosen without them: ``Settings(penalty=…)`` and ``fit`` on the
        sums of all.

        Args:
            sums: of this head.
            held_out: images that are not in ``sums``.
            held_out_sums: sums of this head over such images.

        Returns:
            λ, relative to the mean diagonal of the Gram matrix.

        Raises:
            ContinualError: no held-out image has a label, or one has a class that the sums do not have.
        """
        if self.settings.choose is None:
            return self.settings.penalty
        errors = {}
        for penalty in sorted(PENALTIES, reverse=True):
            weight_MK = ridge(sums, penalty)
            if self.settings.choose == "held_out_mse":
                assert held_out_sums is not None
                errors[penalty] = squared_error(weight_MK, sums.classes, held_out_sums)
            else:
                assert held_out is not None
                errors[penalty] = -accuracy(self._fitted(sums, weight_MK), held_out)
        return min(errors, key=lambda penalty: errors[penalty])  # the first, and so the largest, of equal ones

    def _fitted(self, sums: Sums, weight_MK: Tensor) -> FittedHead:
        raise NotImplementedError


def accuracy(head: FittedHead, held_out: LabeledFeatures) -> float:
    """Fraction of the labeled held-out images whose class has the largest logit among all classes of the head.

    Raises:
        ContinualError: none has a label.
    """
    labeled = held_out.labels >= 0
    if not labeled.any():
        raise ContinualError("no held-out image has a label")
    others = tuple(name for name in head.classes if name not in held_out.names)
    predicted = head.for_classes(held_out.names + others).logits(held_out.features[labeled]).argmax(1)
    return (predicted == held_out.labels[labeled]).double().mean().item()


class Ridge(RidgeHead):
    """``W = (G + λ · mean diag(G) · I)⁻¹ S``.

    >>> import torch
    >>> from distill.continual.heads.ridge import Ridge
    >>> head = Ridge(Ridge.Settings(penalty=0.5))
    >>> sums = head.new_sums(2)
    >>> head.update(sums, torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), ["ash", "oak"])
    >>> head.fit(sums).logits(torch.tensor([[3.0, 0.0]]))  # G = 4 I, S = 2 I, so W = 2 / (4 + 0.5 · 4) I
    tensor([[1., 0.]])
    """

    class Settings(RidgeSettings):
        type: Literal["ridge"] = "ridge"

    settings: Settings
    paper: ClassVar[str] = "Zhuang et al. 2022, arXiv 2205.14922"

    def _fitted(self, sums: Sums, weight_MK: Tensor) -> LinearHead:
        return LinearHead(sums.classes, weight_MK.T, weight_MK.new_zeros(len(sums.classes)))
