"""Weighted k nearest neighbors on frozen features: how good a representation is, without training anything.

Shape suffixes: M features to classify, N labeled features, D width, C classes, K neighbors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.base import UNLABELED
from distill.training.evaluate import Predictions

ROWS = 1024
"""Features that are compared with all labeled ones at a time, so that memory does not grow with M · N."""


def knn(
    train_ND: Tensor, labels_N: Tensor, features_MD: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes of the k labeled features of the largest cosine similarity.

    ``v_c(f) = Σ_{i ∈ kNN(f), y_i = c} exp(cos(f, f_i) / τ) / Σ_{i ∈ kNN(f)} exp(cos(f, f_i) / τ)``

    Paper: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, arXiv
    1805.01978, which has k 200 and τ 0.07; solo-learn has k 20.

    Args:
        train_ND: labeled features, not normalized.
        labels_N: their classes; rows with ``UNLABELED`` are left out.
        features_MD: features to classify.
        classes: C.
        k: number of neighbors; all labeled features if there are fewer.
        temperature: τ.

    Returns:
        [M, C] float32, in [0, 1], with sum 1 in each row.

    Raises:
        ValueError: no feature has a label, or the widths differ.
    """
    labeled_N = labels_N != UNLABELED
    if not labeled_N.any():
        raise ValueError("k nearest neighbors need labeled features, and there are none")
    if train_ND.shape[1] != features_MD.shape[1]:
        raise ValueError(f"features differ in width: {train_ND.shape[1]} and {features_MD.shape[1]}")
    bank_ND, votes_NC = F.normalize(train_ND[labeled_N].float()), F.one_hot(labels_N[labeled_N], classes).float()
    rows = []
    for part_MD in F.normalize(features_MD.float()).split(ROWS):
        cosine_MK, neighbors_MK = (part_MD @ bank_ND.T).topk(min(k, len(bank_ND)), dim=1)
        weights_MK = (cosine_MK / temperature).softmax(1)
        rows.append((weights_MK[:, :, None] * votes_NC[neighbors_MK]).sum(1))
    return torch.cat(rows)


def predict_knn(
    train: Predictions, other: Predictions, classes: int, k: int = 20, temperature: float = 0.07
) -> Predictions:
    """:func:`knn` of the features of a split, as predictions.

    Args:
        train: pooled features [N, D] in the place of logits, and labels.
        other: pooled features of the split to classify, in the same way.
        classes: C.
        k: number of neighbors.
        temperature: τ.

    Returns:
        The votes in the place of logits, with labels and ids of ``other``.
    """
    votes = knn(train.logits, train.labels, other.logits, classes, k, temperature)
    return Predictions(votes, other.labels, other.ids)
