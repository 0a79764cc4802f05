"""``distill objectives`` and ``distill deltas``: tables of all methods, with their purpose, defaults and paper."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from pydantic_core import PydanticUndefined
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from augment.base import Component, Registry, Settings


def objective_types() -> RenderableType:
    """The table of the objectives."""
    from distill.objectives.base import Objective

    table = _table("reads")
    common = set(Objective.Settings.model_fields) - {"weight"}
    for name, settings in Registry("distill.objectives", "Objective").known().items():
        cls = settings.component
        assert cls is not None and issubclass(cls, Objective)
        teacher = ["momentum"] if cls.reads_momentum else [] if cls.reads_teacher else ["no teacher"]
        reads = sorted(cls.needs) + teacher
        table.add_row(name, _about(cls, settings, common, cls.paper), "\n".join(reads))
    note = "\nEach also has a weight, and a schedule {start, warmup, final, until} in epochs."
    return Group(table, Text(note, style="dim"))


def delta_types() -> RenderableType:
    """The table of the deltas."""
    from distill.deltas.base import DeltaSettings, StructuralDelta

    table = _table("merges")
    for name, settings in Registry("distill.deltas", "Delta").known().items():
        cls = settings.component
        assert cls is not None
        paper = re.search(r"^Papers?: (.+?\d{4}\.\d{4,5})", _documentation(cls), re.MULTILINE | re.DOTALL)
        about = _about(cls, settings, set(DeltaSettings.model_fields), " ".join(paper[1].split()) if paper else "")
        table.add_row(name, about, "no" if issubclass(cls, StructuralDelta) else "yes")
    note = (
        "\nEach also has sites. With a config: its sites, ranks and bytes, and the size of each method on its backbone."
    )
    return Group(table, Text(note, style="dim"))


def _table(last: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("type", style="bold", no_wrap=True)
    table.add_column("what it does")
    table.add_column(last, no_wrap=True)
    return table


def _about(cls: type[Component], settings: type[Settings], common: Iterable[str], paper: str) -> Group:
    """The first line of the module's docstring, the defaults of the method's own settings, and its paper."""
    values = {
        key: field.default
        for key, field in settings.model_fields.items()
        if key not in {*common, "type"} and field.default is not PydanticUndefined
    }
    if values.get("weight") == 1:
        del values["weight"]
    defaults = ", ".join(f"{key}: {_plain(value)}" for key, value in values.items())
    parts = [Text(defaults, style="cyan"), Text(paper, style="dim")]
    return Group(Text(_documentation(cls).partition("\n")[0]), *(part for part in parts if part.plain))


def _documentation(cls: type) -> str:
    return sys.modules[cls.__module__].__doc__ or ""


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
