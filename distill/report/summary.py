"""All that the report shows of a run, as plain data: whoever ran it fills this in, and nothing here trains or loads."""

from __future__ import annotations

import csv
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

COLUMNS = ("step", "epoch", "name", "value")


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


Integers = Annotated[tuple[int, ...], BeforeValidator(_as_list)]
"""A sequence of integers, or a tensor or array of them."""


class Part(BaseModel):
    """Closed and immutable; NaN is a legal number, since a report must show what went wrong too."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Part):
    """Where the run took place. An empty version means that the package is not installed."""

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


class Row(Part):
    """One model of the result table. None is shown as a dash: not measured, or no such thing."""

    name: str
    what: str = Field("", description="a few words: what it is and what it learned from")
    accuracy: float | None = Field(None, description="top-1 on the test split, as a fraction")
    last_epoch: float | None = Field(None, description="the same after the last epoch, where training.test_every is")
    best_epoch: float | None = Field(
        None, description="the highest of a tested epoch: chosen by the test split itself, so too high"
    )
    best_at: int | None = Field(None, description="that epoch, counted from 1")
    agreement: float | None = Field(None, description="share of test images where it says what the teacher says")
    trained: int | None = Field(None, description="trained parameters")
    bytes: int | None = Field(None, description="size of what has to be stored for it")
    seconds: float | None = Field(None, description="wall time of its training")


class Series(Part):
    """One logged quantity; the three have one entry per log row."""

    steps: tuple[int, ...]
    epochs: tuple[int, ...]
    values: tuple[float, ...]


Curves = dict[str, Series]
"""Log name → series."""


class SiteBytes(Part):
    """What one changed layer takes in the delta file."""

    site: str
    block: str = Field(description="the block of the network that it belongs to")
    type: str = Field(description="of the delta")
    rank: int | None = None
    bytes: int
    layer_bytes: int = Field(0, description="of the layer's own weight")


class Check(Part):
    """One thing that verification looked at."""

    name: str
    passed: bool
    detail: str = ""


class RunSummary(Part):
    """The run. Only the title, the seed, the machine and the config must be there; a part left empty is not shown."""

    title: str
    seed: int
    machine: Machine
    config: str = Field(description="the resolved configuration, YAML")
    finished: str = Field("", description="date and time, as it is to be shown")

    rows: tuple[Row, ...] = ()
    student: str = Field("student", description="name of the row that the report is about")
    baseline: str = Field(
        "linear probe", description="name of the row that the student is compared with, class by class"
    )
    teacher: str = Field("teacher", description="name of the teacher's row")

    sizes: dict[str, int] = Field({}, description="what (delta, backbone, merged model) → bytes")
    sites: tuple[SiteBytes, ...] = Field((), description="where the student's bytes went, layer by layer")
    seconds: dict[str, float] = Field({}, description="stage → wall time")
    paths: dict[str, str] = Field({}, description="what → where it was written")
    curves: dict[str, Curves] = Field(
        {},
        description="stage → its log. Drawn: names with 'loss' of the student's stage, and of every stage names with "
        "'accuracy', or with 'agreement' where nothing has an accuracy",
    )
    contact_sheet: Path | None = Field(None, description="PNG of what each network saw")
    operations_sheet: Path | None = Field(None, description="PNG of every operation over its range")
    shared: str = Field("", description="what the teacher's and the student's views have in common")

    classes: tuple[str, ...] = ()
    labels: Integers = Field((), description="class index of every test image, -1 where it has none")
    predictions: dict[str, Integers] = Field({}, description="name of a row → its class index for every test image")

    verification: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _predictions_fit(self) -> RunSummary:
        for name, indices in {"labels": self.labels, **self.predictions}.items():
            if len(indices) not in (0, len(self.labels)):
                raise ValueError(f"{len(indices)} predictions of {name!r} for {len(self.labels)} labels")
            if indices and not all(-1 <= index < len(self.classes) for index in indices):
                raise ValueError(f"{name!r} holds class {max(indices, key=abs)}, but {len(self.classes)} have names")
        return self

    def row(self, name: str) -> Row | None:
        """The row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)


def read_curves(path: Path) -> Curves:
    """The curves of a log with the columns ``step,epoch,name,value``, one row per value.

    A torn last line, which a killed run leaves, is left out.

    Raises:
        ValueError: another line is no such row; the text names file and line.
    """
    found: dict[str, list[tuple[int, int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    lines = list(csv.reader(text.splitlines()))
    for number, line in enumerate(lines, start=1):
        if number == 1 and tuple(line) == COLUMNS:
            continue
        try:
            step, epoch, name, value = line
            row = int(step), int(epoch), float(value)
        except ValueError as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: expected {','.join(COLUMNS)}, got {','.join(line)!r}") from error
        found.setdefault(name, []).append(row)
    return {
        name: Series(
            steps=tuple(r[0] for r in rows), epochs=tuple(r[1] for r in rows), values=tuple(r[2] for r in rows)
        )
        for name, rows in found.items()
    }


def finite(value: float | None) -> bool:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    """The model name that Linux gives, else what Python knows; with the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
