"""What would end a training, at its start or at its end, is said before it."""

import copy
import re

import pytest
from deltas_models import build
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach
from distill.deltas.base import DeltaError, DeltaSettings
from distill.deltas.foreseen import check_entry
from distill.deltas.inventory import inventory
from distill.deltas.rank_settings import at_rank_one

FAMILY = Registry("distill.deltas", "Delta")


def settled(entry: dict) -> DeltaSettings:
    return FAMILY.settings_of(entry["type"]).model_validate(entry)  # type: ignore[return-value]


def place(model: nn.Module, entry: DeltaSettings) -> None:
    """As a run does before it trains."""
    check_entry(model, entry, {s.name: s.delta for s in attach(model, [at_rank_one(entry)], "classifier")})


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return build("test_efficientnet")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "low_rank", "sites": "blocks.9.*"}, "pattern 'blocks.9.*' matches no layer; did you mean 'blocks."),
        (
            {"type": "low_rank", "sites": "blocks.1.0.conv_exp[qz]"},
            "matches no layer; did you mean 'blocks.1.0.conv_exp'?; brackets hold q, k or v",
        ),
        ({"type": "low_rank", "ranks": {"budget": 100}}, "too small for one rank: the smallest, of 'conv_stem', takes"),
        ({"type": "dora", "ranks": {"budget": 100}}, "too small for one rank"),
        ({"type": "low_rank", "ranks": {"budget": 100, "importance": "uniform"}}, "rank 1 in all layers takes 11,404"),
        (
            {"type": "low_rank", "ranks": {"budget": "6KB", "least": 1}},
            "the least ranks of all layers take 11,404 bytes",
        ),
        ({"type": "halrp", "ranks": {"budget": "1KB"}}, "a budget of 1,000 bytes is too small"),
        (
            {"type": "halrp", "max_growth": 0.001},
            "R and S alone have 2.24% of the entries of the layers, more than max_growth 0.10%",
        ),
        ({"type": "adalora", "budget": 100}, "adalora: a budget of 100 bytes is too small"),
        ({"type": "sparse", "entries": 10**6}, "fewer than entries: 1000000; lower it"),
        ({"type": "ladder", "exclude": "blocks.9"}, "exclude pattern 'blocks.9' matches no block"),
    ],
)
def test_what_cannot_be(plain: nn.Module, entry: dict, message: str) -> None:
    with pytest.raises(DeltaError, match=re.escape(message)):
        place(copy.deepcopy(plain), settled(entry))


def test_what_can_be_is_put_where_it_goes(plain: nn.Module) -> None:
    model = copy.deepcopy(plain)
    for entry in (
        {"type": "halrp", "ranks": {"budget": "40KB"}, "max_growth": 0.05, "kinds": "conv"},
        {"type": "low_rank", "rank": 2, "kinds": ["conv", "depthwise"], "oversized": "dense"},
        {"type": "adapter"},
    ):
        place(model, settled(entry))
    assert {single.rank for single in inventory(model) if single.type == "halrp"} == {1}
    assert {single.type for single in inventory(model)} == {"halrp", "low_rank", "dense", "adapter"}
