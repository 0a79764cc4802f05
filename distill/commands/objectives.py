"""``distill objectives``: a table of all objectives: purpose, defaults, paper, and what each reads."""

from __future__ import annotations

import sys

from pydantic_core import PydanticUndefined
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from augment.base import Registry, Settings
from distill.objectives.base import Objective


def list_objectives(console: Console) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("type", style="bold", no_wrap=True)
    table.add_column("what it does")
    table.add_column("reads", no_wrap=True)
    for name, settings in Registry("distill.objectives", "Objective").known().items():
        cls = settings.component
        assert cls is not None and issubclass(cls, Objective)
        about = Group(purpose(cls), Text(defaults(settings), style="cyan"), Text(cls.paper, style="dim"))
        table.add_row(name, about, "\n".join(reads(cls)))
    console.print(table)
    console.print("\nEach also has a weight, and a schedule {start, warmup, final, until} in epochs.", style="dim")


def purpose(cls: type[Objective]) -> str:
    """The first line of the objective's module docstring."""
    return (sys.modules[cls.__module__].__doc__ or "").partition("\n")[0]


def defaults(settings: type[Settings]) -> str:
    """The defaults of an objective's own settings as ``key: value``, and of its weight if that is not 1."""
    common = set(Objective.Settings.model_fields) - {"weight"}
    values = {
        key: field.default
        for key, field in settings.model_fields.items()
        if key not in common and field.default is not PydanticUndefined
    }
    if values.get("weight") == 1:
        del values["weight"]
    return ", ".join(f"{key}: {_plain(value)}" for key, value in values.items())


def reads(cls: type[Objective]) -> list[str]:
    """The features that an objective needs, and whether it does without a teacher."""
    return sorted(cls.needs) + ([] if cls.reads_teacher else ["no teacher"])


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
