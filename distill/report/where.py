"""Shows the bytes of a student's deltas: a table by block of the network, and a figure by layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from distill.report.items import LayerBytes
from distill.report.numbers import percent, size
from distill.report.summary import RunSummary

if TYPE_CHECKING:  # tables are printed by commands that draw nothing
    from matplotlib.figure import Figure

    from distill.report.theme import Theme

BAR = 24  # length of the longest bar in columns


@dataclass(frozen=True)
class BlockBytes:
    """Neighboring sites of one block of the network."""

    name: str
    sites: tuple[LayerBytes, ...]

    @property
    def bytes(self) -> int:
        return sum(site.bytes for site in self.sites)

    @property
    def ranks(self) -> str:
        """``1–12``, or a dash if no delta has a rank."""
        ranks = [site.rank for site in self.sites if site.rank is not None]
        if not ranks:
            return "–"
        return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)}–{max(ranks)}"

    @property
    def layers(self) -> int:
        """How many layers have a delta; one layer can have several."""
        return len({site.site for site in self.sites})

    @property
    def of_layers(self) -> float | None:
        """Bytes of the deltas divided by those of the layers that they change, each counted once."""
        layers = sum({site.site: site.layer_bytes for site in self.sites}.values())
        return self.bytes / layers if layers else None


def blocks(sites: tuple[LayerBytes, ...]) -> list[BlockBytes]:
    """The sites grouped by block, in the order of the network."""
    order = {name: place for place, name in reversed(list(enumerate(site.block for site in sites)))}
    together = sorted(sites, key=lambda site: order[site.block])
    return [BlockBytes(name, tuple(group)) for name, group in groupby(together, key=lambda site: site.block)]


def bytes_table(sites: tuple[LayerBytes, ...]) -> Table:
    """One line for each block, with a bar for its fraction of all bytes."""
    changed = blocks(sites)
    total, most = sum(block.bytes for block in changed), max(block.bytes for block in changed)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=True)
    table.add_column("block", footer="all", overflow="fold")
    table.add_column("layers", footer=str(sum(block.layers for block in changed)), justify="right")
    table.add_column("ranks", justify="right", no_wrap=True)
    table.add_column("bytes", footer=size(total), justify="right", no_wrap=True)
    table.add_column("of the\nlayers", justify="right", no_wrap=True)
    table.add_column("fraction of all bytes", no_wrap=True)
    for block in changed:
        bar = Text("█" * round(BAR * block.bytes / max(most, 1)), style="blue")
        cells = (str(block.layers), block.ranks, size(block.bytes), percent(block.of_layers))
        table.add_row(Text(block.name), *cells, bar)
    return table


def bytes_figure(summary: RunSummary, theme: Theme) -> Figure | None:
    """Bytes of each changed layer in the network's order; one color for each method, ticks at the start of blocks."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    sites = [site for block in blocks(summary.sites) for site in block.sites]
    if len(sites) < 2:
        return None
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    types = list(dict.fromkeys(site.type for site in sites))
    for number, kind in enumerate(types):
        places = [place for place, site in enumerate(sites) if site.type == kind]
        color = theme.better if len(types) == 1 else theme.series[number % len(theme.series)]
        axes.bar(places, [sites[place].bytes for place in places], width=0.8, color=color, label=kind)
    begins = [place for place, site in enumerate(sites) if not place or site.block != sites[place - 1].block]
    shown = begins[:: -(-len(begins) // 24)]
    axes.set_xticks(shown, [sites[place].block for place in shown], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(sites) - 0.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))
    axes.grid(axis="y")
    axes.set_title("bytes of the delta, layer by layer")
    if len(types) > 1:
        axes.legend(fontsize=8)
    return figure
