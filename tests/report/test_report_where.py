"""Size of the deltas: blocks, the terminal's table and the picture."""

from rich.console import Console

from distill.report.html import render
from distill.report.items import LayerBytes
from distill.report.terminal import closing
from distill.report.theme import LIGHT, png
from distill.report.where import blocks, bytes_figure, bytes_table

SITES = (
    LayerBytes(site="conv_stem", block="conv_stem", type="low_rank", rank=2, bytes=400, layer_bytes=4000),
    LayerBytes(site="blocks.0.a", block="blocks.0", type="low_rank", rank=1, bytes=300, layer_bytes=3000),
    LayerBytes(site="blocks.0.b", block="blocks.0", type="low_rank", rank=7, bytes=2100, layer_bytes=3000),
    LayerBytes(site="blocks.0.norm", block="blocks.0", type="bias", bytes=100),
    LayerBytes(site="conv_stem.late", block="conv_stem", type="bias", bytes=100, layer_bytes=1000),
)


def test_blocks_hold_their_sites_in_order() -> None:
    stem, block = blocks(SITES)
    assert (stem.name, stem.bytes, stem.ranks, stem.of_layers) == ("conv_stem", 500, "2", 0.1)
    assert (block.name, block.bytes, block.ranks, block.of_layers) == ("blocks.0", 2500, "1–7", 2500 / 6000)
    assert blocks(SITES[3:4])[0].ranks == "–"


def test_a_layer_with_two_deltas_is_counted_once() -> None:
    second = LayerBytes(site="conv_stem", block="conv_stem", type="bias", bytes=100, layer_bytes=4000)
    (stem,) = blocks((SITES[0], second))
    assert (stem.layers, stem.bytes, stem.of_layers) == (1, 500, 0.125)
    assert bytes_table((SITES[0], second)).columns[1].footer == "1"


def test_the_table_fits_and_adds_up() -> None:
    for width in (80, 120):
        console = Console(width=width, record=True, quiet=False)
        console.print(bytes_table(SITES))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        assert lines[-1].split()[:3] == ["all", "5", "3"] and "kB" in lines[-1]
        bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
        assert bars == {"conv_stem": 5, "blocks.0": 24}


def test_the_run_shows_it_where_there_are_sites(run) -> None:
    with_sites = run.model_copy(update={"sites": SITES})
    for summary, there in ((run, False), (with_sites, True)):
        console = Console(width=100, record=True)
        console.print(closing(summary, 100))
        assert ("blocks.0" in console.export_text()) is there
        assert ("Size of the deltas" in render(summary, {})) is there


def test_the_picture_has_a_bar_for_every_site(run) -> None:
    figure = bytes_figure(run.model_copy(update={"sites": SITES}), LIGHT)
    assert figure is not None
    heights = sorted(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == [100, 100, 300, 400, 2100]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["conv_stem", "blocks.0"]
    assert bytes_figure(run, LIGHT) is None
    assert png(lambda theme: bytes_figure(run.model_copy(update={"sites": SITES}), theme), LIGHT)
