"""The rows of ``delta_accuracy.py``: every delta at every budget, and the baselines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach, deltas
from distill.deltas.base import DeltaError, WeightDelta, tensor_bytes
from distill.deltas.rank_settings import RankedSettings, parse_bytes
from distill.deltas.sites import classifier_names
from distill.deltas.state import delta_bytes

BUDGETS = ("50KB", "200KB", "1MB")
WIDTHS = ("hidden", "rank", "density")
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "uniform": {"importance": "uniform"},
    "fisher": {"importance": "fisher"},
    "fisher least 1": {"importance": "fisher", "least": 1},
    "fisher gradient": {"importance": "fisher", "spectrum": "gradient"},
    "activation": {"importance": "activation"},
    "feature_change": {"importance": "feature_change"},
}
"""How low rank's ranks are chosen: see ``distill.deltas.ranked``."""
SLACK = 0.8
"""An arm that fills less than this fraction of its budget is left out."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: the deltas that a student is trained with."""

    name: str
    deltas: tuple[dict[str, Any], ...] = ()
    train: str = "deltas"
    bytes: int | None = None
    """Before training; None where ranks are chosen from the data, or nothing is attached."""

    @property
    def method(self) -> str:
        """Arms of one method share their learning rate, however its ranks are chosen."""
        return self.name.partition("@")[0].partition(" ")[0]


def all_arms(backbone: nn.Module, console: Console) -> list[Arm]:
    """The controls, methods of one size, then every method at every budget; prints which are left out."""
    arms = [Arm("linear probe"), Arm("nearest class mean"), Arm("full", train="full")]
    known = Registry("distill.deltas", "Delta").known()
    smallest = parse_bytes(BUDGETS[0])
    for name, settings in known.items():
        fields = settings.model_fields
        sized = issubclass(settings, RankedSettings) or any(field in fields for field in ("budget", *WIDTHS))
        if not sized and (size := size_of(backbone, {"type": name})) is not None and size < smallest * 2:
            arms.append(Arm(name, ({"type": name},), bytes=size))
            continue
        for budget in BUDGETS:
            arms_at_budget = list(at_budget(backbone, name, budget))
            arms += arms_at_budget
            if not arms_at_budget:
                console.print(f"{name}@{budget} is left out: no setting comes near it", style="yellow")
    return arms


def at_budget(backbone: nn.Module, name: str, budget: str) -> Iterator[Arm]:
    """A method's arms of about this many bytes; none if it has no such setting."""
    settings: Any = Registry("distill.deltas", "Delta").known()[name]
    limit = parse_bytes(budget)
    if issubclass(settings, RankedSettings):
        kinds = tuple(ALLOCATIONS) if name == "low_rank" else ("fisher",) if name == "halrp" else ("uniform",)
        own = {"least": 0} if name == "halrp" else {}  # its one rank everywhere takes more than the smaller budgets
        for kind in kinds:
            ranks = {"budget": budget, **ALLOCATIONS[kind], **own}
            yield Arm(f"{name} {kind}@{budget}", ({"type": name, "ranks": ranks},))
        return
    if "budget" in settings.model_fields:
        yield Arm(f"{name}@{budget}", ({"type": name, "budget": budget},))
        return
    width = next((field for field in WIDTHS if field in settings.model_fields), None)
    entry: dict[str, Any] | None = {"type": name}
    if width is not None:
        entry = widest(backbone, name, width, limit)
    elif settings.component is not None and issubclass(settings.component, WeightDelta):
        entry = last_layers(backbone, name, limit)
    if entry is None:
        return
    size = size_of(backbone, entry)
    if size is not None and SLACK * limit <= size <= limit:
        yield Arm(f"{name}@{budget}", (entry,), bytes=size)


def widest(backbone: nn.Module, name: str, field: str, limit: int) -> dict[str, Any] | None:
    """The largest width or density within the limit, by bisection: bytes grow with it."""
    whole = field != "density"
    low, high = (0.0, 4096.0) if whole else (0.0, 1.0)
    for _ in range(14):
        middle = (low + high) / 2
        value: float = int(middle) if whole else middle
        size = size_of(backbone, {"type": name, field: value}) if value else 0
        low, high = (middle, high) if size is not None and size <= limit else (low, middle)
    value = int(low) if whole else low
    return {"type": name, field: value} if value else None


def last_layers(backbone: nn.Module, name: str, limit: int) -> dict[str, Any] | None:
    """The method on as many layers as fit, from the last one on."""
    try:
        sites = deltas(attached(backbone, {"type": name}))
    except DeltaError:
        return None
    chosen: list[str] = []
    for site in reversed(sites):
        size = tensor_bytes(site.delta.state_dict().values())
        if size <= limit:
            chosen.append(site.name)
            limit -= size
    return {"type": name, "sites": chosen} if chosen else None


def size_of(backbone: nn.Module, entry: dict[str, Any]) -> int | None:
    """Bytes of a delta with these settings, None if it cannot be built."""
    try:
        return delta_bytes(attached(backbone, entry))
    except (DeltaError, ValueError):
        return None


def attached(backbone: nn.Module, entry: dict[str, Any]) -> nn.Module:
    """A copy of the backbone with one entry of ``student.deltas``. Raises ``DeltaError`` if it cannot be attached."""
    settings: Any = Registry("distill.deltas", "Delta").settings_of(entry["type"]).model_validate(entry)
    model = copy.deepcopy(backbone)
    attach(model, [settings], classifier_names(model))
    return model
