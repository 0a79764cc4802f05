"""Clusters of frozen features: k-means, and how well its clusters agree with classes that it has not seen.

Shape suffixes: N images, D width, K clusters.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RESTARTS = 10
"""Starts of k-means++, of which the one with the smallest inertia is kept."""


def k_means(features_ND: Tensor, clusters: int, seed: int) -> Tensor:
    """Centers [K, D] of the features' directions: scikit-learn's k-means on features of length 1.

    Args:
        features_ND: not normalized.
        clusters: K.
        seed: of the starts.

    Returns:
        The centers, float32.

    Raises:
        ValueError: fewer images than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(features_ND) < clusters:
        raise ValueError(f"{clusters} clusters of {len(features_ND)} images")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters
        model = KMeans(clusters, n_init=RESTARTS, random_state=seed)
        model.fit(F.normalize(features_ND.float()).numpy())
    return torch.from_numpy(np.ascontiguousarray(model.cluster_centers_)).float()


def assign(features_ND: Tensor, centers_KD: Tensor) -> Tensor:
    """[N] int64, the cluster of each image: that of the nearest center."""
    return torch.cdist(F.normalize(features_ND.float()), centers_KD).argmin(1)


@dataclass(frozen=True)
class Agreement:
    """How well clusters agree with classes.

    Args:
        nmi: mutual information, normalized by the mean of both entropies, in [0, 1].
        ari: adjusted Rand index: 0 for chance, 1 for equal partitions.
        accuracy: fraction of images in the cluster that is assigned to their class, by the assignment of clusters to
            classes, one to one, that makes it largest (Hungarian method).
    """

    nmi: float
    ari: float
    accuracy: float


def agreement(labels: np.ndarray, clusters: np.ndarray) -> Agreement:
    """Compare clusters [N] with classes [N], both int64 and 0 or more.

    >>> import numpy as np
    >>> from distill.transfer.clusters import agreement
    >>> agreement(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 5])).accuracy
    0.75
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = np.zeros((clusters.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(counts, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(-counts)
    return Agreement(
        float(normalized_mutual_info_score(labels, clusters)),
        float(adjusted_rand_score(labels, clusters)),
        float(counts[rows, columns].sum() / len(labels)),
    )
