"""Streams of the toy data, of any kind, and sources that some of them need."""

from pathlib import Path
from typing import Any

from toy_stream import stream_tree
from toy_training import Blobs

from distill.config import validate_tree
from distill.continual.open_stream import stream_in
from distill.continual.task import Task
from distill.data.base import Samples, Split
from distill.data.experiment_data import ExperimentData
from distill.experiments.continual import ContinualExperiment
from distill.run.context import make_data

ONLINE = {"training": {"schedule": {"type": "constant", "warmup": 0}}, "strategy": {"type": "sequential"}}


class Cameras(Blobs):
    """Blobs with a table: the camera of each image, and a column with a missing value."""

    def column(self, split: Split, name: str) -> list[str]:
        ids = self.split(split).ids
        if name == "camera":
            return [("left", "right", "top")[int(id[-2:]) % 3] for id in ids]
        return [""] * len(ids) if name == "empty" else super().column(split, name)  # type: ignore[return-value]


class OneEach(Blobs):
    """One training image of each class."""

    has_split = frozenset({"train", "test"})

    def split(self, name: Split) -> Samples:
        samples: Any = super().split(name)
        if name == "train":
            samples.ids, samples.labels = samples.ids[:4], samples.labels[:4]
        return samples

    def __init__(self, settings: Any):
        super().__init__(settings)
        self.has_split = frozenset({"train", "test"})


def settings_of(tmp_path: Path, kind: str, keys: dict[str, Any], **changes: Any) -> ContinualExperiment:
    """The toy experiment with another stream."""
    plain = {**stream_tree(tmp_path, **changes), "stream": {"type": kind, **keys}}
    settings = validate_tree(plain, "toy stream")
    assert isinstance(settings, ContinualExperiment)
    return settings


def divided(tmp_path: Path, kind: str, source: dict[str, Any] | None = None, **keys: Any) -> tuple[list[Task], Any]:
    """The tasks of a stream of the toy data, and the data."""
    settings = settings_of(tmp_path, kind, keys, data={"source": source or {}})
    data = make_data(settings)
    return stream_in(settings).tasks(data), data


def own(kind: type) -> dict[str, Any]:
    return {"type": f"{kind.__module__}:{kind.__qualname__}"}


def ids(data: ExperimentData, task: Task, split: Split = "train") -> list[str]:
    return [data.subset(split).ids[index] for index in task.indices[split]]
