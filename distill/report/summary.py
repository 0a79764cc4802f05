"""The content of a report: items of a run, grouped by their type, and facts about the run."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from distill.report.items import (
    Check,
    ClassPredictions,
    Curve,
    Curves,
    Files,
    FormatFigures,
    Headline,
    Integers,
    Item,
    LayerBytes,
    Lines,
    Matrix,
    Note,
    Picture,
    Row,
    Scatter,
    Sizes,
    Table,
)

T = TypeVar("T", bound=Item)


class Machine(Item):
    """The machine of a run. An empty version means that the package is not installed."""

    python: str
    torch: str
    timm: str = ""
    kornia: str = ""
    lightning: str = ""
    cpu: str = ""
    threads: int = Field(ge=1)
    gpu: str = ""

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        import torch

        return cls(
            python=platform.python_version(),
            torch=torch.__version__,
            **{name: _version(name) for name in ("timm", "kornia", "lightning")},
            cpu=_cpu_name(),
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        )


class RunSummary(Item):
    """The content of a report. Title, seed, machine and config are required; the report omits other empty parts."""

    title: str
    seed: int
    machine: Machine
    config: str = Field(description="the resolved configuration, YAML")
    finished: str = Field("", description="date and time of the end, formatted")

    rows: tuple[Row, ...] = ()
    student: str = Field("student", description="name of the student's row")
    baseline: str = Field("linear probe", description="name of the row that the student is compared with, by class")
    teacher: str = Field("teacher", description="name of the teacher's row")

    sizes: dict[str, int] = Field({}, description="name (delta, backbone, merged model) → bytes")
    sites: tuple[LayerBytes, ...] = Field((), description="bytes of the student's deltas, by layer")
    seconds: dict[str, float] = Field({}, description="stage → wall time")
    paths: dict[str, Path] = Field({}, description="name → path of a written file")
    curves: dict[str, Curves] = Field(
        {},
        description="row → its log. The figure shows series with 'loss' in their name of the student, and series with "
        "'accuracy' in their name of all rows, or with 'agreement' if there is no accuracy",
    )
    headlines: tuple[Headline, ...] = ()
    tables: tuple[Table, ...] = ()
    lines: tuple[Lines, ...] = ()
    scatters: tuple[Scatter, ...] = ()
    formats: tuple[FormatFigures, ...] = Field((), description="what was measured of the exported formats")
    matrices: tuple[Matrix, ...] = ()
    pictures: tuple[Picture, ...] = ()

    classes: tuple[str, ...] = ()
    labels: Integers = Field((), description="class index of every test image, -1 where it has none")
    predictions: dict[str, Integers] = Field({}, description="name of a row → its class index for every test image")

    verification: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, items: Iterable[Item], paths: dict[str, Path], **about: Any) -> RunSummary:
        """Group items by their type.

        Args:
            items: of all stages, in the order of the report.
            paths: files of the run itself, shown before those of items.
            about: title, seed, machine, config, and other fields that do not come from items.

        Returns:
            The summary of the run.
        """
        items = list(items)

        def of_type(kind: type[T]) -> tuple[T, ...]:
            return tuple(item for item in items if isinstance(item, kind))

        compared = [item.model_dump() for item in of_type(ClassPredictions)]
        return cls(
            rows=of_type(Row),
            sizes={name: size for item in of_type(Sizes) for name, size in item.bytes.items()},
            sites=of_type(LayerBytes),
            paths=paths | {name: path for item in of_type(Files) for name, path in item.paths.items()},
            curves={item.name: item.log for item in of_type(Curve)},
            headlines=of_type(Headline),
            tables=of_type(Table),
            lines=of_type(Lines),
            scatters=of_type(Scatter),
            formats=of_type(FormatFigures),
            matrices=of_type(Matrix),
            pictures=of_type(Picture),
            **(compared[-1] if compared else {}),
            verification=of_type(Check),
            warnings=tuple(item.text for item in of_type(Note)),
            **about,
        )

    @model_validator(mode="after")
    def _predictions_fit(self) -> RunSummary:
        ClassPredictions(classes=self.classes, labels=self.labels, predictions=self.predictions)
        return self

    @property
    def seconds_by_kind(self) -> dict[str, float]:
        """Seconds, with stages such as ``task-1/student`` and ``task-2/student`` added up under ``student``."""
        added: dict[str, float] = {}
        for name, seconds in self.seconds.items():
            kind = name.rpartition("/")[2]
            added[kind] = added.get(kind, 0.0) + seconds
        return added

    @property
    def heat_maps(self) -> dict[str, list[Matrix]]:
        """Section → its matrices, for those that are drawn."""
        sections: dict[str, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.section:
                sections.setdefault(matrix.section, []).append(matrix)
        return sections

    def row(self, name: str) -> Row | None:
        """The row with this name; None if there is none."""
        return next((row for row in self.rows if row.name == name), None)


def finite(value: float | None) -> bool:
    """Whether the value is a finite number."""
    return value is not None and math.isfinite(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    """The CPU's model name from Linux, else from Python, and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
