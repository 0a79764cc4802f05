"""The base class of few-shot heads: features of few labeled images → one linear layer.

A head is fitted in many episodes at once, and in the coordinates of the support: every solution is in the span of the N
support features (and of the text embeddings), so that D features become at most N + K numbers, without any loss.

Shape suffixes: E episodes, N support images of an episode, D feature width, M coordinates, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

import augment.base
from augment.base import Component, UserError
from distill.continual.heads.linear import LinearHead


class FewShotError(UserError, ValueError):
    """Episodes or heads cannot be made of these images; the text gives the reason."""


@dataclass(frozen=True)
class Support:
    """The labeled images of some episodes, in float64.

    Args:
        features: [E, N, M] coordinates of the features.
        onehot: [E, N, K] labels.
        text: [E, K, M] coordinates of the classes' text embeddings; None without.
    """

    features: Tensor
    onehot: Tensor
    text: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """[E, K] images of each class."""
        return self.onehot.sum(1)

    @property
    def means(self) -> Tensor:
        """[E, K, M] mean feature of each class."""
        return self.onehot.mT @ self.features / self.counts[..., None]


class FewShotHead(Component):
    """A linear classifier that is fitted to few images. A subclass implements :meth:`solve`.

    Class attributes:
        paper: short citation.
        reads_text: whether text embeddings of the classes change it.

    Attributes:
        unsolved: number of problems so far whose solver stopped at its limit of steps before it converged; a solver
            that is not iterative, or that is stopped early by design, leaves it at 0.
    """

    class Settings(augment.base.Settings):
        type: str
        name: str | None = Field(
            None,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$",
            description="of this head in tables and files, for several of one type; none: the type",
        )

        @property
        def shown(self) -> str:
            """Its name in tables."""
            return self.name or self.type

    paper: ClassVar[str] = ""
    reads_text: ClassVar[bool] = False
    unsolved: int = 0

    def __init__(self, settings: Settings):
        self.settings = settings

    @abstractmethod
    def solve(self, support: Support) -> tuple[Tensor, Tensor]:
        """Weights [E, K, M] and biases [E, K] of all episodes; each episode is a problem of its own."""

    def weights(
        self, features_END: Tensor, labels_EN: Tensor, classes: int, text_KD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The heads of some episodes with as many support images each.

        Args:
            features_END: of the support images, any float dtype.
            labels_EN: int64 in 0 … K − 1; every class has an image.
            classes: K.
            text_KD: or [E, K, D], an embedding of each class in the space of the features; None: none.

        Returns:
            Weights [E, K, D] and biases [E, K], float64.

        Raises:
            FewShotError: fewer than two classes, or a class without an image.
        """
        features_END = features_END.double()
        onehot_ENK = one_hot(labels_EN, classes).double()
        if classes < 2:
            raise FewShotError("a classifier needs two classes or more, and there is one")
        if bool((onehot_ENK.sum(1) == 0).any()):
            raise FewShotError(f"{self.settings.shown}: a class has no support image")
        rows = features_END
        if text_KD is not None:
            text_KD = text_KD.double().expand(len(rows), -1, -1)
            rows = torch.cat([rows, text_KD], dim=1)
        width = rows.shape[2]
        if rows.shape[1] >= width:  # no fewer coordinates than features
            return self.solve(Support(features_END, onehot_ENK, text_KD))
        basis_EDM, mixed_EMR = torch.linalg.qr(rows.mT)
        images = features_END.shape[1]
        text_EKM = None if text_KD is None else mixed_EMR.mT[:, images:]
        weight_EKM, bias_EK = self.solve(Support(mixed_EMR.mT[:, :images], onehot_ENK, text_EKM))
        return weight_EKM @ basis_EDM.mT, bias_EK

    def fit(
        self,
        features_ND: Tensor,
        labels_N: Tensor,
        classes: Sequence[str],
        text: Mapping[str, Tensor] | None = None,
    ) -> LinearHead:
        """The head of some labeled images, of which classes may have different numbers.

        Args:
            features_ND: of the images.
            labels_N: int64 indices into ``classes``; negative: no label, and the image is left out.
            classes: names; each has at least one labeled image.
            text: name of a class → its embedding [D]; None: none.

        Returns:
            A linear head, which folds into a network's classifier.

        Raises:
            FewShotError: fewer than two classes, or a class without a labeled image or without a text.
        """
        labeled = labels_N >= 0
        labels_N, features_ND = labels_N[labeled], features_ND[labeled]
        counts = labels_N.bincount(minlength=len(classes)).tolist()
        if missing := [name for name, count in zip(classes, counts) if not count]:
            raise FewShotError(f"no labeled training image of {shown_names(missing)}; a head needs one of each class")
        text_KD = None
        if text is not None and self.reads_text:
            if missing := [name for name in classes if name not in text]:
                raise FewShotError(f"there is no text embedding of {shown_names(missing)}")
            text_KD = torch.stack([text[name] for name in classes])
            if text_KD.shape[1] != features_ND.shape[1]:
                raise FewShotError(
                    f"text embeddings of width {text_KD.shape[1]}, features of {features_ND.shape[1]}: they must be of "
                    "one space"
                )
        weight, bias = self.weights(features_ND[None], labels_N[None], len(classes), text_KD)
        return LinearHead(classes, weight[0], bias[0])


def largest_curvature(features_ENM: Tensor) -> Tensor:
    """[E] the largest eigenvalue of ``FᵀF``, from the smaller of ``FᵀF`` and ``F Fᵀ``."""
    wide = features_ENM.shape[1] < features_ENM.shape[2]
    gram = features_ENM @ features_ENM.mT if wide else features_ENM.mT @ features_ENM
    return torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0)


def shown_names(names: Sequence[str]) -> str:
    """The first names, for an error."""
    return ", ".join(repr(name) for name in names[:5]) + (" …" if len(names) > 5 else "")
