"""What a stage can report. The report draws each type of item in one way, whichever stage it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


Integers = Annotated[tuple[int, ...], BeforeValidator(_as_list)]
"""A sequence of integers, or a tensor or array of them."""


class Item(BaseModel):
    """Immutable, without unknown fields. NaN is allowed, since a report must show failures too."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Item):
    """One model of the result table. None is shown as a dash: not measured, or no such thing."""

    name: str
    what: str = Field("", description="a few words: what it is and what it learned from")
    accuracy: float | None = Field(None, description="top-1 on the test split, as a fraction")
    last_epoch: float | None = Field(None, description="the same after the last epoch, where training.test_every is")
    best_epoch: float | None = Field(
        None, description="the highest of a tested epoch: chosen by the test split itself, so too high"
    )
    best_at: int | None = Field(None, description="that epoch, counted from 1")
    agreement: float | None = Field(None, description="fraction of test images where its class is the teacher's")
    trained: int | None = Field(None, description="trained parameters")
    bytes: int | None = Field(None, description="size of what has to be stored for it")
    seconds: float | None = Field(None, description="wall time of its training")


class Metric(Item):
    """One measured number of the student, which its exports carry too."""

    name: str
    value: float
    seed: int | None = None


class Matrix(Item):
    """A table of numbers in [0, 1], say accuracy after task i on task j; NaN or None is shown as a dash."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    caption: str = ""

    @model_validator(mode="after")
    def _values_fit(self) -> Matrix:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"{self.title!r}: values must be {len(self.rows)} rows of {len(self.columns)}")
        return self


class Series(Item):
    """One logged quantity; the three have one entry per log row."""

    steps: tuple[int, ...]
    epochs: tuple[int, ...]
    values: tuple[float, ...]


Curves = dict[str, Series]
"""Log name → series."""


class Curve(Item):
    """The log of one training."""

    name: str
    """Of the model that was trained, as its row calls it."""
    log: Curves


class Check(Item):
    """The result of one verification. A check that fails makes the run fail, after its report is written."""

    name: str
    passed: bool
    detail: str = ""


class Sizes(Item):
    """Bytes of what was written."""

    bytes: dict[str, int]


class LayerBytes(Item):
    """What one changed layer takes in the delta file."""

    site: str
    block: str = Field(description="the block of the network that it belongs to")
    type: str = Field(description="of the delta")
    rank: int | None = None
    bytes: int
    layer_bytes: int = Field(0, description="of the layer's own weight")


class Picture(Item):
    """A PNG in the run folder. Those of one title share a section; ``folded`` ones open on a click."""

    title: str
    path: Path
    alt: str
    caption: str = ""
    folded: str = Field("", description="the line to click on; empty: shown at once")


class Note(Item):
    """A warning, or another line that the report shows prominently."""

    text: str


class Files(Item):
    """What was written where."""

    paths: dict[str, Path]


class ClassPredictions(Item):
    """What models predict for each test image, for the comparison class by class."""

    classes: tuple[str, ...]
    labels: Integers = Field(description="class index of every test image, -1 where it has none")
    predictions: dict[str, Integers] = Field(description="name of a row → its class index for every test image")

    @model_validator(mode="after")
    def _predictions_fit(self) -> ClassPredictions:
        for name, indices in {"labels": self.labels, **self.predictions}.items():
            if len(indices) not in (0, len(self.labels)):
                raise ValueError(f"{len(indices)} predictions of {name!r} for {len(self.labels)} labels")
            if indices and not all(-1 <= index < len(self.classes) for index in indices):
                raise ValueError(f"{name!r} holds class {max(indices, key=abs)}, but {len(self.classes)} have names")
        return self
