"""Outputs of two teachers and a student, and their settings."""

from pathlib import Path
from typing import Any

import torch
from toy_training import network

from distill.models.features import Features, FeatureShapes

SHAPES = FeatureShapes(classes=3, pooled=4)


def features(seed: int, classes: int = 3, batch: int = 5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    logits, pooled = (torch.randn(batch, width, generator=generator) for width in (classes, 4))
    return Features(logits, pooled)


TEACHERS = [[features(2), features(3)], [features(4), features(5)]]
STUDENTS = [features(0), features(1)]


LABELS = torch.tensor([0, 1, 2, -1, 0])


def networks(output: Path, *seeds: int) -> list[dict[str, Any]]:
    return [network(output, "test_resnet", seed) for seed in seeds]
