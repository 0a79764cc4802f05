"""A fitted head that is linear in the network's features, and how it replaces a timm model's classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distill.continual.errors import ContinualError
from distill.continual.heads.base import NEVER, FittedHead
from distill.models.timm_models import new_classifier


class LinearHead(FittedHead):
    """``logits = f Wᵀ + b``.

    Args:
        classes: names of the rows.
        weight_KD: W, float64.
        bias_K: b, float64.
    """

    def __init__(self, classes: Sequence[str], weight_KD: Tensor, bias_K: Tensor):
        self.classes, self.weight, self.bias = tuple(classes), weight_KD, bias_K

    def scores(self, features_ND: Tensor) -> Tensor:
        return features_ND @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight.float(), "bias": self.bias.float()}

    def for_classes(self, classes: Sequence[str]) -> LinearHead:
        rows = {name: row for row, name in enumerate(self.classes)}
        weight_KD = self.weight.new_zeros(len(classes), self.weight.shape[1])
        bias_K = self.bias.new_full((len(classes),), NEVER)
        for row, name in enumerate(classes):
            if name in rows:
                weight_KD[row], bias_K[row] = self.weight[rows[name]], self.bias[rows[name]]
        return LinearHead(classes, weight_KD, bias_K)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> nn.Linear:
        """Make this head the classifier of a timm model, which gets one of another width if the classes differ.

        Args:
            model: a timm model without deltas at its classifier; changed in place.

        Returns:
            The model's classifier.

        Raises:
            ContinualError: the classifier is not one linear layer of the width of these features with a bias, or has
                a delta.
        """
        classifier = model.get_classifier()  # type: ignore[operator]
        if not isinstance(classifier, nn.Linear) or classifier.bias is None:
            raise ContinualError(f"a head folds into one linear layer with a bias; the classifier is {classifier}")
        if parametrize.is_parametrized(classifier):
            raise ContinualError("the classifier has a delta; merge it before a head is folded into the classifier")
        if classifier.in_features != self.weight.shape[1]:
            raise ContinualError(
                f"the head reads features of width {self.weight.shape[1]}, the classifier of {classifier.in_features}"
            )
        if classifier.out_features != len(self.classes):
            like = classifier.weight
            with torch.random.fork_rng(devices=[]):  # its random weights are overwritten
                new_classifier(model, len(self.classes))
            classifier = model.get_classifier().to(like.device, like.dtype)  # type: ignore[operator]
        classifier.weight.copy_(self.weight)
        classifier.bias.copy_(self.bias)
        return classifier
