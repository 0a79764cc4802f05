"""``distill deltas CONFIG``: sites, ranks and bytes of its deltas, and the cost of every method on its backbone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach, deltas
from distill.deltas.base import (
    Delta,
    DeltaError,
    DeltaSettings,
    SizedSettings,
    StructuralDelta,
    WeightDelta,
    entry_named,
)
from distill.deltas.foreseen import check_entry
from distill.deltas.inventory import Listed, inventory
from distill.deltas.rank_settings import RankedSettings, at_rank_one
from distill.deltas.sites import classifier_names, select
from distill.deltas.state import backbone_state
from distill.experiments.distillation import DistillationExperiment
from distill.models.network import create_network
from distill.report.numbers import MISSING, count, percent, size

WIDE = 100  # terminal columns from which the column of layer kinds is shown
SHOWN = 3  # number of layers without delta that are named before "and N more"


@dataclass(frozen=True)
class Cost:
    """Size of a method's deltas on a whole backbone, with default settings."""

    type: str
    sites: int = 0
    parameters: int = 0
    bytes: int = 0
    mergeable: bool = True
    shrinks: bool = False
    """Whether training removes part of it."""
    refused: str = ""
    """Why the method cannot be attached to the backbone; empty if it can."""


def list_deltas(experiment: DistillationExperiment, console: Console) -> None:
    """Print both tables. Creates the network, but reads no images and trains nothing."""
    torch.manual_seed(experiment.seed)
    network = create_network(experiment.student.network)
    head = classifier_names(network.model)
    backbone = sum(t.numel() * t.element_size() for t in backbone_state(network.model, head).values())
    console.print(f"\n{network.architecture} ({network.origin}), frozen backbone {size(backbone)}", highlight=False)
    quiet, logging.getLogger("distill.deltas").disabled = logging.getLogger("distill.deltas").disabled, True
    try:
        if experiment.student.deltas:
            _print_configured(network.model, experiment.student.deltas, head, console)
        else:
            console.print("this config has no deltas: it trains the head alone, or the whole network\n")
        all_costs = costs(network.model, head)
        console.print(costs_table([cost for cost in all_costs if not cost.refused], backbone))
        for cost in all_costs:
            if cost.refused:
                console.print(f"{cost.type} cannot be attached here: {cost.refused}", highlight=False)
    finally:
        logging.getLogger("distill.deltas").disabled = quiet


def costs(model: nn.Module, head: Sequence[str]) -> list[Cost]:
    """Cost of every known method, attached with its default settings to a copy of the model.

    Returns:
        One cost per method, the smallest first, those that cannot be attached last.
    """
    all_costs = []
    for name, settings in Registry("distill.deltas", "Delta").known().items():
        whole = copy.deepcopy(model)
        try:
            attach(whole, [settings()], exclude_head=head)  # type: ignore[list-item]
        except DeltaError as error:
            all_costs.append(Cost(name, refused=str(error)))
            continue
        sites = deltas(whole)
        all_costs.append(
            Cost(
                name,
                len(sites),
                sum(p.numel() for site in sites for p in site.delta.parameters() if p.requires_grad),
                sum(listed.bytes for listed in inventory(whole)),
                not any(isinstance(site.delta, StructuralDelta) for site in sites),
                any(type(site.delta).finish.__func__ is not Delta.finish.__func__ for site in sites),  # type: ignore
            )
        )
    return sorted(all_costs, key=lambda cost: (bool(cost.refused), cost.bytes))


def configured(
    model: nn.Module, entries: Sequence[DeltaSettings], head: Sequence[str]
) -> tuple[list[Listed], list[list[str]]]:
    """The deltas of a config, attached to a copy of the model. Deltas whose ranks are chosen from data have rank 1.

    Args:
        model: the backbone with its head.
        entries: the config's deltas.
        head: names of the head's layers, which get no delta.

    Returns:
        The deltas, one row per site, and for every entry the layers that its pattern matches but that cannot carry it.
    """
    whole, passed_over = copy.deepcopy(model), []
    for number, entry in enumerate(entries):
        with entry_named(number):
            sites = attach(whole, [at_rank_one(entry)], exclude_head=head)
            carrying = {site.name: site.delta for site in sites}
            check_entry(whole, entry, carrying)
        targets = []
        if entry.component is not None and issubclass(entry.component, WeightDelta):
            targets = [target.name for group in select(model, entry, head).values() for target in group]
        passed_over.append([name for name in targets if name not in carrying])
    return inventory(whole), passed_over


def sites_table(listed: Sequence[Listed], width: int, chosen: frozenset[str] = frozenset()) -> Table:
    """One line per site.

    Args:
        listed: rows of the table.
        width: of the terminal, in columns.
        chosen: delta types whose ranks are chosen from the data: their bytes are those of rank 1.

    Returns:
        The table, with sums in its footer.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=True)
    table.add_column("site", footer=f"{len(listed)} sites", overflow="fold")
    if width >= WIDE:
        table.add_column("kind")
    table.add_column("weight", no_wrap=True)
    table.add_column("delta", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("bytes", footer=size(sum(row.bytes for row in listed)), justify="right", no_wrap=True)
    table.add_column("of layer", justify="right", no_wrap=True)
    for row in listed:
        rank = "data" if row.type in chosen else MISSING if row.rank is None else str(row.rank)
        fraction = percent(row.bytes / row.layer_bytes) if row.layer_bytes else MISSING
        kind = [row.kind] if width >= WIDE else []
        shape = "×".join(map(str, row.shape)) or MISSING
        table.add_row(Text(row.site), *kind, shape, row.type, rank, size(row.bytes), fraction)
    return table


def costs_table(all_costs: Sequence[Cost], backbone: int) -> Table:
    """One line per method; ``backbone`` is its size in bytes."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        title="every method on this backbone, with its default settings",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("method", no_wrap=True)
    for heading in ("sites", "trained\nparameters", "bytes", "of the\nbackbone", "merges"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in all_costs:
        bytes_ = ("≤ " if cost.shrinks else "") + size(cost.bytes)
        numbers = (str(cost.sites), count(cost.parameters), bytes_, percent(cost.bytes / backbone))
        table.add_row(cost.type, *numbers, "yes" if cost.mergeable else "no")
    return table


def _print_configured(
    model: nn.Module, entries: Sequence[DeltaSettings], head: Sequence[str], console: Console
) -> None:
    from_data = [entry for entry in entries if isinstance(entry, RankedSettings) and entry.ranks is not None]
    chosen = frozenset(entry.type for entry in from_data)
    console.print()
    listed, passed_over = configured(model, entries, head)
    console.print(sites_table(listed, console.width, chosen))
    for entry, left_out in zip(entries, passed_over):
        if left_out:
            more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
            advice = "; with oversized: dense they get dense deltas" if isinstance(entry, SizedSettings) else ""
            console.print(
                f"{entry.type} leaves out {len(left_out)} matching layers that cannot carry it: "
                f"{', '.join(left_out[:SHOWN])}{more}{advice}",
                highlight=False,
            )
    for entry in from_data:
        assert entry.ranks is not None
        allocation = (
            f"budget {entry.ranks.budget}" if entry.ranks.budget is not None else f"alpha {entry.ranks.alpha:g}"
        )
        console.print(
            f"{entry.type}: training chooses the rank of every layer "
            f"({allocation}, {entry.ranks.importance}); "
            "the bytes shown are those of rank 1",
            highlight=False,
        )
    console.print()
