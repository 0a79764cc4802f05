"""The items that stages report. The report shows an item by its type, whichever stage it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


Integers = Annotated[tuple[int, ...], BeforeValidator(_as_list)]
"""A sequence of integers, or a tensor or array of them."""


class Item(BaseModel):
    """The base class: immutable, without unknown fields. NaN is allowed, since a report also shows failures."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Item):
    """A measured number with its 95 % interval."""

    value: float
    low: float
    high: float


MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
    "calibration_error": "calibration error",
}
"""Name of a measure in ``Row.measures`` → its title, in the order in which they are shown."""


class Row(Item):
    """One model of the result table. None is shown as a dash: not measured, or not applicable."""

    name: str
    what: str = Field("", description="a few words about the model and its training data")
    accuracy: float | None = Field(None, description="top-1 on the test split, as a fraction")
    measures: dict[str, Estimate] = Field(
        {}, description="name → estimate on the same images; see distill.training.measures"
    )
    last_epoch: float | None = Field(None, description="accuracy after the last epoch, with training.test_every")
    best_epoch: float | None = Field(
        None, description="highest accuracy of a tested epoch: chosen on the test split, so too high"
    )
    best_at: int | None = Field(None, description="that epoch, counted from 1")
    agreement: float | None = Field(None, description="fraction of test images with the teacher's prediction")
    trained: int | None = Field(None, description="number of trained parameters")
    bytes: int | None = Field(None, description="size of the tensors to store for it")
    seconds: float | None = Field(None, description="wall time of its training")


class Metric(Item):
    """One measured number of the student, which its exports contain too."""

    name: str
    value: float
    seed: int | None = None
    low: float | None = Field(None, description="lower end of the 95 % interval")
    high: float | None = Field(None, description="upper end of it")


Unit = Literal["text", "percent", "points", "bytes", "seconds", "count", "milliseconds", "ratio", "error"]
"""How a number is shown: ``percent`` of a fraction without its sign, ``points`` a difference of fractions,
``milliseconds`` without the unit, ``ratio`` with two decimals, ``error`` as a power of ten."""
Cell = str | float | None
"""None is shown as a dash: not measured, or not defined."""


class Headline(Item):
    """One of the few numbers at the top of the report."""

    value: float | None
    unit: Unit
    what: str


class Column(Item):
    """A column of a table."""

    heading: str
    unit: Unit = "text"
    rank: int = Field(
        0, description="a narrow terminal leaves out the columns of the highest ranks; 0: it is always shown"
    )


class TableRow(Item):
    """A row of a table."""

    cells: tuple[Cell, ...]
    strong: bool = Field(False, description="whether it is the subject of the run")
    mark: str = Field("", description="sign after the first cell, which the table's caption explains")
    muted: bool = Field(False, description="whether it is shown in gray, which the table's caption explains")


class Table(Item):
    """A table of measured numbers."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    caption: str = ""

    @model_validator(mode="after")
    def _cells_fit(self) -> Table:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.title!r}: {len(row.cells)} cells in a row, for {len(self.columns)} columns")
        return self


class Matrix(Item):
    """A table of numbers in [0, 1], such as accuracy after task i on task j; NaN and None are shown as a dash."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    caption: str = ""
    section: str = Field(
        "", description="matrices with the same section are drawn side by side as heat maps; empty: shown as a table"
    )
    strong: bool = Field(False, description="whether it belongs to the subject of the run")

    @model_validator(mode="after")
    def _values_fit(self) -> Matrix:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"{self.title!r}: values must be {len(self.rows)} rows of {len(self.columns)}")
        return self


class Line(Item):
    """One line of :class:`Lines`."""

    name: str
    values: tuple[float | None, ...]
    dashed: bool = Field(False, description="whether it is a control")
    strong: bool = Field(False, description="whether it is the subject of the run")
    color: int | None = Field(
        None, ge=0, description="number of its color, the same in several figures; None: its place"
    )


class Lines(Item):
    """Lines over the same points, drawn in one figure; None is a gap."""

    title: str
    points: tuple[str, ...] = Field(description="names of the points of the horizontal axis, in their order")
    lines: tuple[Line, ...]
    unit: Literal["percent", "bytes"] = "percent"
    axis: str = Field("", description="what the points are")
    caption: str = ""

    @model_validator(mode="after")
    def _values_fit(self) -> Lines:
        for line in self.lines:
            if len(line.values) != len(self.points):
                raise ValueError(
                    f"{self.title!r}: {len(line.values)} values of {line.name!r}, {len(self.points)} points"
                )
        return self


class Series(Item):
    """One logged quantity; each field has one entry for each log row."""

    steps: tuple[int, ...]
    epochs: tuple[int, ...]
    values: tuple[float, ...]


class Point(Item):
    """One point of a :class:`Scatter`."""

    name: str
    x: float
    y: float
    value: float | None = Field(None, description="decides its color")
    muted: bool = Field(False, description="whether it is gray")
    strong: bool = Field(False, description="whether it is the one that was chosen")


class Scatter(Item):
    """Named points in a plane; less is better on both axes. A line joins those that no other point beats on both."""

    title: str
    points: tuple[Point, ...]
    x: str = Field(description="what the horizontal axis is")
    y: str = Field(description="what the vertical axis is")
    x_unit: Unit
    y_unit: Unit
    value: str = Field("", description="what the color is, a fraction")
    caption: str = ""


class Latency(Item):
    """Time of calls of a format, each with one batch."""

    batch: int
    p50_ms: float = Field(description="median over rounds, milliseconds")
    p90_ms: float = Field(description="90th percentile over rounds, milliseconds")
    eager_ratio: float = Field(
        description="median over rounds of its time over that of the live model in PyTorch in the same round"
    )
    images_per_second: float = Field(description="batch / median time")


class FormatFigures(Item):
    """What was measured of one exported format, in a process of its own."""

    name: str
    type: str = Field("", description="of the export target; empty: the live model, run by PyTorch")
    images: int = Field(description="of the split, on which outputs were compared")
    split: str
    relative_difference: float = Field(
        description="largest absolute difference of the logits from the live model's, over the largest absolute logit"
    )
    agreement: float = Field(description="fraction of the images with the live model's class")
    passed: bool = Field(description="whether both are within what the format promises")
    accuracy: Estimate | None = Field(None, description="fraction of the labeled images, with its 95 % interval")
    bytes: int = Field(description="of all files of the format; of the live model, of its tensors")
    load_seconds: float = Field(description="from the checked files to a session, packages already imported")
    latencies: tuple[Latency, ...]
    peak_bytes: int | None = Field(
        None,
        description="highest resident memory while loading and running every batch size once, beyond that of the "
        "interpreter, the packages and the images; None: this system does not tell it",
    )
    cores: float = Field(description="CPU seconds of the process per second of the timed calls")
    threads: int = Field(description="that every runtime was told to use")
    fixed_batch: int | None = Field(None, description="the program's own batch, in which larger ones run; None: any")


Curves = dict[str, Series]
"""Log name → series."""


class Curve(Item):
    """The log of one fit."""

    name: str
    """Name of the trained model, as in its row."""
    log: Curves


class Check(Item):
    """The result of one verification. A check that fails makes the run fail, after its report is written."""

    name: str
    passed: bool
    detail: str = ""
    of: str = Field("export", description="what was verified; checks of the same are counted together")


class Sizes(Item):
    """Bytes of the exported files and models, by name."""

    bytes: dict[str, int]


class LayerBytes(Item):
    """Bytes of one layer's delta in the delta file."""

    site: str
    block: str = Field(description="block of the network that the layer belongs to")
    type: str = Field(description="type of the delta")
    rank: int | None = None
    bytes: int
    layer_bytes: int = Field(0, description="bytes of the layer's own tensors")


class Picture(Item):
    """A PNG in the run folder. Pictures with the same title share a section; ``folded`` ones open on a click."""

    title: str
    path: Path
    alt: str
    caption: str = ""
    folded: str = Field("", description="text of the line to click on; empty: the picture is always shown")


class Note(Item):
    """A warning, or another line that the report shows prominently."""

    text: str


class Files(Item):
    """Paths of written files, by name."""

    paths: dict[str, Path]


class ClassPredictions(Item):
    """Predictions of the models for each test image, for the comparison by class."""

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
