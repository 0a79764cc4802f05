"""Weighted k nearest neighbors: by hand, and one feature at a time."""

import math

import pytest
import torch
from torch import tensor

from distill.training import knn as module
from distill.training.evaluate import Predictions
from distill.training.knn import knn, predict_knn


def test_on_paper():
    """cos 1 and 0 to the two nearest of three; the third, opposite one has no vote."""
    train, labels = tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), tensor([1, 0, 2])
    votes = knn(train, labels, tensor([[5.0, 0.0]]), classes=4, k=2, temperature=0.5)
    p = math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(votes, tensor([[1 - p, p, 0.0, 0.0]]))


def test_as_the_definition_in_parts_and_with_unlabeled_features(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, other = torch.randn(30, 5, generator=generator), torch.randn(7, 5, generator=generator)
    labels = torch.randint(-1, 3, (30,), generator=generator)
    monkeypatch.setattr(module, "ROWS", 3)
    actual = knn(train, labels, other, 3, k=4, temperature=0.1)
    for row, feature in zip(actual, other):
        cosines = [
            (torch.cosine_similarity(feature, t, dim=0).item(), y) for t, y in zip(train, labels.tolist()) if y >= 0
        ]
        votes = [0.0] * 3
        for cosine, y in sorted(cosines, reverse=True)[:4]:
            votes[y] += math.exp(cosine / 0.1)
        assert row.tolist() == pytest.approx([vote / sum(votes) for vote in votes], abs=1e-5)


def test_more_neighbors_than_features_and_predictions():
    train = Predictions(torch.eye(2), tensor([0, 1]), tensor([5, 6]))
    other = Predictions(tensor([[1.0, 0.1], [0.1, 1.0]]), tensor([0, 1]), tensor([7, 8]))
    predicted = predict_knn(train, other, classes=2)
    assert predicted.accuracy() == 1 and torch.equal(predicted.ids, other.ids)
    with pytest.raises(ValueError, match="need labeled features"):
        knn(torch.eye(2), tensor([-1, -1]), torch.eye(2), 2)
    with pytest.raises(ValueError, match="differ in width: 2 and 3"):
        knn(torch.eye(2), tensor([0, 1]), torch.zeros(1, 3), 2)
