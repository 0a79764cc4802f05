"""Zero-shot heads: a linear map from pooled features to text embeddings, folded with the texts of classes.

Shape suffixes: N images, D pooled width, E width of the text embeddings, K classes, T the network's own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from augment.base import did_you_mean
from distill.continual.heads.linear_algebra import mean_square, solve
from distill.text.names import TextError, folded

SCALE = 20.0
"""What cosines are multiplied by to be logits."""


@dataclass(frozen=True)
class TextMap:
    """``e = (f − μ) A``, an estimate of ``t − c``: the text embedding of an image's class without the mean text.

    The head is ``w_k = s · A u_k``, ``b_k = −μ · w_k`` with ``u_k = (t_k − c) / |t_k − c|``, one plain linear layer. A
    class is added by its text alone: no other row changes.

    Args:
        map_DE: A, float64.
        mean_D: μ, of the features.
        center_E: c, the mean text embedding of the classes that the map was fitted to.
        scale: s.
    """

    map_DE: Tensor
    mean_D: Tensor
    center_E: Tensor
    scale: float = SCALE

    def head(self, texts_KE: Tensor) -> tuple[Tensor, Tensor]:
        """W [K, D] and b [K] float64 for classes with these text embeddings."""
        unit_KE = F.normalize(texts_KE.double() - self.center_E, dim=1)
        weight_KD = self.scale * unit_KE @ self.map_DE.T
        return weight_KD, -weight_KD @ self.mean_D

    def tensors(self) -> dict[str, Tensor]:
        """A, μ and c by name, float64."""
        return {"map": self.map_DE, "mean": self.mean_D, "center": self.center_E}


def fit_to_labels(features_ND: Tensor, labels_N: Tensor, texts_KE: Tensor, penalty: float) -> TextMap:
    """The ridge map of DeViSE and ESZSL in closed form: ``argmin Σ |(f − μ) A − (t_y − c)|² + λ |A|²``.

    Every class counts the same, whatever its number of images. λ is relative to the mean square of the centered
    features, as in :mod:`distill.continual.heads.ridge`.

    Args:
        features_ND: of images of the seen classes.
        labels_N: indices into ``texts_KE``.
        texts_KE: of the classes; those without an image do not take part.
        penalty: λ.

    Returns:
        The map; c is the mean over the seen classes.
    """
    counts_K = labels_N.bincount(minlength=len(texts_KE))
    seen_K = counts_K > 0
    weights_N = 1 / counts_K[labels_N].double() / seen_K.sum()
    center_E = texts_KE[seen_K].double().mean(0)
    return _fit(features_ND, texts_KE[labels_N].double() - center_E, center_E, weights_N, penalty)


def fit_to_embeddings(features_ND: Tensor, targets_NE: Tensor, center_E: Tensor, penalty: float) -> TextMap:
    """The ridge map to embeddings that another model gives for each image, such as ConSE's; no label is read.

    Args:
        features_ND: of images.
        targets_NE: their embeddings, normalized.
        center_E: c, the mean text embedding of the classes.
        penalty: λ, as in :func:`fit_to_labels`.

    Returns:
        The map.
    """
    weights_N = torch.full((len(features_ND),), 1 / len(features_ND), dtype=torch.float64)
    targets_NE = targets_NE.double()
    return _fit(features_ND, targets_NE - targets_NE.mean(0), center_E.double(), weights_N, penalty)


def _fit(features_ND: Tensor, targets_NE: Tensor, center_E: Tensor, weights_N: Tensor, penalty: float) -> TextMap:
    features_ND = features_ND.double()
    mean_D = weights_N @ features_ND
    centered_ND = features_ND - mean_D
    weighted_ND = centered_ND * weights_N[:, None]
    seconds_DD = weighted_ND.T @ centered_ND
    scale = mean_square(seconds_DD) or 1.0
    identity_DD = torch.eye(len(mean_D), dtype=torch.float64)
    map_DE = solve(seconds_DD + penalty * scale * identity_DD, weighted_ND.T @ targets_NE)
    return TextMap(map_DE, mean_D, center_E)


def of_projection(weight_ED: Tensor, bias_E: Tensor | None) -> TextMap:
    """The map of a network whose classifier is the projection to the embeddings of a text tower, as CLIP's is.

    Args:
        weight_ED: of the projection.
        bias_E: of it; None: it has none.

    Returns:
        The map with c = 0. An image's embedding is not normalized, which changes no prediction.
    """
    if bias_E is not None and bool(bias_E.any()):
        raise ValueError("a projection to text embeddings has no bias")
    zeros_D, zeros_E = (torch.zeros(size, dtype=torch.float64) for size in (weight_ED.shape[1], weight_ED.shape[0]))
    return TextMap(weight_ED.T.double(), zeros_D, zeros_E)


def conse(logits_NT: Tensor, teacher_TE: Tensor, top: int) -> Tensor:
    """[N, E] ConSE embeddings (arXiv 1312.5650): the mean text of the likeliest classes, weighted, normalized.

    Args:
        logits_NT: of a classifier.
        teacher_TE: text embeddings of its classes.
        top: number of classes that are read.

    Returns:
        One row for each image.
    """
    p_NG, classes_NG = logits_NT.softmax(1).topk(min(top, logits_NT.shape[1]), dim=1)
    return F.normalize((p_NG[:, :, None] * teacher_TE[classes_NG]).sum(1), dim=1)


def unseen_classes(unseen: Sequence[str] | int, classes: Sequence[str], seed: int) -> list[int]:
    """Numbers of the classes whose labels are not read, sorted.

    Args:
        unseen: their names, or how many the seed chooses.
        classes: of the data.
        seed: of the choice.

    Returns:
        Indices into ``classes``.

    Raises:
        TextError: the data has no class of that name, or fewer classes.
    """
    if isinstance(unseen, int):
        if unseen > len(classes):
            raise TextError(f"unseen: {unseen} classes, and the data has {len(classes)}")
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
        return sorted(order[:unseen].tolist())
    numbers = {name: number for number, name in enumerate(classes)}
    spoken_as = {folded(name): number for number, name in enumerate(classes)}
    for name in unseen:
        if name not in numbers and folded(name) not in spoken_as:
            raise TextError(f"unseen: the data has no class {name!r}{did_you_mean(name, classes)}")
    return sorted({numbers.get(name, spoken_as.get(folded(name), -1)) for name in unseen})
