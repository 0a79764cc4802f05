"""A source whose samples can be made to fail in every way that real ones do."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Literal

import numpy as np
from pydantic import Field

from distill.data.base import DataError, Sample, Samples, Source, Split
from distill.data.experiment_data import DataSettings, ExperimentData

Fault = Literal["corrupt", "kill", "hang", "bug", "import"]


class Toy(Source):
    """Sample ``i`` is a gray image of value ``i % 256`` with the label ``i % classes``."""

    class Settings(Source.Settings):
        type: Literal["toy"] = "toy"
        samples: int = 40
        class_count: int = 4
        faults: dict[int, Fault] = Field({})
        labels: dict[int, int] = Field({})
        splits: tuple[Split, ...] = ("train", "val", "test")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.has_split = frozenset(settings.splits)
        self.classes = tuple(f"class {index}" for index in range(settings.class_count))

    def split(self, name: Split) -> Samples:
        return ToySamples(self.settings, name)


class ToySamples:
    def __init__(self, settings: Toy.Settings, name: Split):
        self.ids = [f"{name}/{index:03d}" for index in range(settings.samples)]
        self.labels = [settings.labels.get(i, i % max(settings.class_count, 1)) for i in range(settings.samples)]
        self.faults = settings.faults

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        fault = self.faults.get(index)
        if fault == "corrupt":
            raise DataError(f"{self.ids[index]}: cannot be decoded")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            time.sleep(1000)
        if fault == "bug":
            raise KeyError("a bug in a source")
        if fault == "import":
            heavy = {"timm", "lightning", "kornia", "torchvision", "datasets", "sklearn", "albumentations"}
            raise KeyError(f"imported: {sorted(heavy & set(sys.modules))}, python modules: {len(sys.modules) > 100}")
        return Sample(np.full((8, 8, 3), index % 256, np.uint8), self.labels[index], self.ids[index])


def toy(seed: int = 0, world_size: int = 1, rank: int = 0, **settings) -> ExperimentData:
    """A data module over ``Toy``; unknown keys go to the source."""
    own = {key: settings.pop(key) for key in list(settings) if key in Toy.Settings.model_fields}
    defaults = {"batch_size": 8, "size": 8, "workers": 0}
    return ExperimentData(DataSettings(source=Toy.Settings(**own), **{**defaults, **settings}), seed, world_size, rank)


def indices(batches) -> list[int]:
    """The samples of batches, in order: their images' value."""
    return [int(image[0, 0, 0]) for batch in batches for image in batch.images]
