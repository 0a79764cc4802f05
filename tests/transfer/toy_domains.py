"""Two domains that are learned in seconds: the toy experiment's images, and the same inverted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from toy_training import Blobs, BlobSamples, tree

from distill.config import merge_trees, validate_tree
from distill.data.base import Sample, Samples, Split
from distill.experiments.base import Experiment


class Inverted(Blobs):
    """The images of the toy, inverted; labels may be permuted, and there may be another class."""

    class Settings(Blobs.Settings):
        permuted: int = Field(0, description="added to every label, modulo the number of classes")
        names: str = "abcd"

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.classes = tuple(settings.names)

    def split(self, name: Split) -> Samples:
        return InvertedSamples(name, self.settings, self.channels)


class InvertedSamples(BlobSamples):
    def __init__(self, name: Split, settings: Inverted.Settings, channels: int):
        super().__init__(name, settings, channels)
        self.labels = [label if label < 0 else (label + settings.permuted) % 4 for label in self.labels]

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample._replace(image=np.ascontiguousarray(255 - sample.image), label=self.labels[index])


def domains_tree(output: Path, **changes: Any) -> dict[str, Any]:
    """The config: one epoch, with an EMA teacher of both normalizations."""
    plain = tree(output, name="domains")
    own = {
        "kind": "target_domain",
        "data": {"target": {"type": "toy_domains:Inverted"}},
        "augment": {"student": ["RandomHorizontalFlip"], "policy": "weak_teacher"},
        "student": {"deltas": [{"type": "statistics"}, {"type": "low_rank", "rank": 2}]},
        "objectives": [
            {"type": "ce"},
            {"type": "self_training", "threshold": 0.3},
            {"type": "mcc", "weight": 0.3},
            {"type": "dann", "weight": 0.1, "hidden": 8},
        ],
        "training": {"epochs": 1, "ema": 0.9},
    }
    del plain["teacher"]
    plain["teacher"] = {"ema": {"decay": 0.9, "normalizations": ["source", "target"]}}
    return merge_trees(plain, own | changes if not changes else merge_trees(own, changes))


def domains(output: Path, **changes: Any) -> Experiment:
    """The typed experiment of :func:`domains_tree`."""
    return validate_tree(domains_tree(output, **changes), "toy domains")
