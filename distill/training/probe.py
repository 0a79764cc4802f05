"""The linear probe: logistic regression on a frozen network's pooled features, a control for the student."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.training.evaluate import Predictions

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse L2 penalties to try; the one with the best held-out accuracy is used."""


@dataclass(frozen=True)
class LinearProbe:
    """``logits = f Wᵀ + b`` on pooled features f [N, D]."""

    weight: Tensor
    """[K, D]."""
    bias: Tensor
    """[K]."""
    strength: float
    """Inverse L2 penalty that was chosen."""

    def predict(self, features: Predictions) -> Predictions:
        """Logits [N, K] from pooled features [N, D], which are given in the place of logits."""
        return Predictions(features.logits @ self.weight.T + self.bias, features.labels, features.ids)

    @torch.no_grad()
    def into(self, classifier: nn.Linear) -> None:
        """Write weight and bias into a network's classifier [K, D]."""
        classifier.weight.copy_(self.weight)
        classifier.bias.copy_(self.bias)


def fit_probe(train: Predictions, held_out: Predictions, classes: int) -> LinearProbe:
    """Fit on labeled samples and choose the penalty by the accuracy on held-out ones.

    Features are standardized for the fit, and the scaling is then folded into the weights. A class without a labeled
    sample gets a bias of −10⁴, so it is never predicted.

    Args:
        train: pooled features [N, D] in the place of logits; rows without a label are ignored.
        held_out: pooled features of other samples, in the same way.
        classes: K.

    Returns:
        The probe with the best held-out accuracy.

    Raises:
        ValueError: fewer than two classes have a labeled sample.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    labeled = train.labels >= 0
    x, y = train.logits[labeled].double(), train.labels[labeled]
    if y.unique().numel() < 2:
        raise ValueError("a linear probe needs labeled samples of at least two classes")
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    best: LinearProbe | None = None
    best_accuracy = -1.0
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations of L-BFGS are enough for a control
            model.fit(((x - mean) / std).numpy(), y.numpy())
        probe = _fold(model.coef_, model.intercept_, model.classes_, mean, std, classes, strength)
        accuracy = probe.predict(held_out).accuracy() or 0.0
        if accuracy > best_accuracy:
            best, best_accuracy = probe, accuracy
    assert best is not None
    return best


def _fold(coef, intercept, present, mean: Tensor, std: Tensor, classes: int, strength: float) -> LinearProbe:
    w, b = torch.from_numpy(coef), torch.from_numpy(intercept)
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        w, b = torch.cat([-w / 2, w / 2]), torch.cat([-b / 2, b / 2])
    weight, bias = torch.zeros(classes, len(mean), dtype=w.dtype), torch.full((classes,), -1e4, dtype=w.dtype)
    weight[present] = w / std
    bias[present] = b - (w / std) @ mean
    return LinearProbe(weight.float(), bias.float(), strength)
