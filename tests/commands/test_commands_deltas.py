"""``distill deltas``: tables that fit the terminal, numbers that are those of the delta file."""

import io
import re
from pathlib import Path

import pytest
import timm
from rich.console import Console

from distill.commands.deltas import configured, costs, list_deltas
from distill.config import load_config
from distill.deltas.adalora import AdaLoRA
from distill.deltas.inventory import block_of
from distill.deltas.low_rank import LowRank
from distill.deltas.norm_affine import NormAffine
from distill.deltas.statistics import Statistics

ROOT = Path(__file__).parents[2]
NETWORK = "student.network={model: test_vit, pretrained: false, size: 64}"


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_and_say_what_is_asked(width: int) -> None:
    overrides = [NETWORK, "student.deltas=[{type: low_rank, rank: 4, sites: 'blocks.0.*'}, {type: bias, kinds: norm}]"]
    console = Console(width=width, record=True, file=io.StringIO())
    list_deltas(load_config(ROOT / "configs" / "quickstart.yaml", overrides), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    row = next(line for line in text.splitlines() if line.startswith("blocks.0.attn.qkv"))
    # A [4, 64] and B [192, 4] are 1,024 numbers, and the layer has 12,288 in its weight and 192 in its bias.
    assert re.search(r"192×64\s+low_rank\s+4\s+4.1\skB\s+8.2\s%", row), row
    assert re.search(r"^blocks\.0\.norm1 .* bias +– +256\sB", text, re.M)
    assert re.search(r"^dense +25 +294,912 +1.18\sMB", text, re.M) and re.search(r"^adalora .* ≤ ", text, re.M)
    assert re.search(r"^branch cannot be attached here: pattern '\*' matches no layer", text, re.M)


def test_costs_are_those_of_every_method() -> None:
    model = timm.create_model("test_efficientnet", num_classes=4)
    by_type = {cost.type: cost for cost in costs(model, ("classifier",))}
    assert {"low_rank", "halrp", "adalora", "dora", "sparse", "ladder"} <= by_type.keys()
    assert by_type["low_rank"].mergeable and not by_type["ladder"].mergeable
    numbers = sum(m.bias.numel() for m in model.modules() if getattr(m, "bias", None) is not None) - 4
    assert (by_type["bias"].parameters, by_type["bias"].bytes) == (numbers, 4 * numbers)


def test_ranks_that_the_data_will_choose_are_listed_at_one() -> None:
    model = timm.create_model("test_vit", num_classes=4)
    entries = [LowRank.Settings(sites=("blocks.0.attn.qkv[qv]",), ranks={"budget": "1KB"}), AdaLoRA.Settings(rank=3)]  # type: ignore[arg-type]
    listed, _ = configured(model, entries, ("head",))
    q, v = (row for row in listed if row.type == "low_rank")
    assert [q.site, v.site] == ["blocks.0.attn.qkv[q]", "blocks.0.attn.qkv[v]"]
    assert (q.rank, q.bytes, q.shape, q.layer_bytes) == (1, 4 * 128, (64, 64), 4 * 64 * 65)
    assert {row.rank for row in listed if row.type == "adalora"} == {3}


def test_a_norm_is_its_weight_its_bias_and_its_statistics() -> None:
    model = timm.create_model("test_efficientnet", num_classes=4)
    listed, _ = configured(model, [Statistics.Settings(), NormAffine.Settings()], ("classifier",))
    assert len(listed) > 2 and {row.type for row in listed} == {"statistics", "norm_affine"}
    assert {(row.kind, row.bytes / row.layer_bytes) for row in listed} == {("norm", 0.5)}


def test_layers_that_cannot_carry_their_delta_are_named() -> None:
    overrides = [NETWORK.replace("vit", "efficientnet"), "student.deltas=[{type: low_rank, rank: 4}]"]
    console = Console(width=120, record=True, file=io.StringIO())
    list_deltas(load_config(ROOT / "configs" / "quickstart.yaml", overrides), console)
    text = " ".join(console.export_text().split())
    # Depthwise 3 x 3 convs have nine numbers a channel; one block per channel of rank 4 would have 40.
    assert re.search(
        r"low_rank leaves out \d+ matching layers .*: [^;]*conv_dw.*; with oversized: dense they get",
        text,
    )


def test_blocks() -> None:
    names = {"blocks.3.attn.qkv": "blocks.3", "layer1.0.conv1": "layer1.0", "conv_stem": "conv_stem", "stem.0": "stem"}
    assert {name: block_of(name) for name in names} == names
