"""HALRP's last step: small entries go, ranks that lost a half go whole, growth stays under its bound."""

import pytest
import torch
from deltas_models import build, disturb, images
from torch import nn

from distill.deltas.attach import attach, deltas
from distill.deltas.base import DeltaError, DeltaInit
from distill.deltas.halrp import HALRP, pruning_size


def finished(model: nn.Module, **settings: float) -> DeltaInit:
    allocation = HALRP.Settings(rank=3, sites=("blocks.0.*",), **settings)  # type: ignore[arg-type]
    attach(model, [allocation], "head")
    disturb(model)
    start = HALRP.finish(allocation, {site.name: site.delta for site in deltas(model)})  # type: ignore[misc]
    assert start is not None
    return start


def numbers(start: DeltaInit, names: str = "R S K1 K2") -> int:
    kept = [t[name] for t in start.tensors.values() for name in names.split()]
    return sum(int((x != 0).sum()) if len(x.shape) > 1 else x.numel() for x in kept)


def test_the_size_that_is_kept() -> None:
    entries = torch.tensor([0.5, -0.2, 1e-6, 0.1, -0.4])
    assert pruning_size(entries, 5) == 1e-5
    assert pruning_size(entries, 2) == pytest.approx(0.2) and (entries.abs() > pruning_size(entries, 2)).sum() == 2
    assert pruning_size(entries, 0) == pytest.approx(0.5)


def test_without_a_bound_only_what_is_nothing_goes() -> None:
    model = build("test_vit")
    start = finished(model)
    assert [settings.rank for settings in start.settings] == [3]  # type: ignore[attr-defined]
    again = build("test_vit")
    attach(again, start.settings, "head")
    for site in deltas(again):
        site.delta.load_state_dict(start.tensors[site.name])
    assert torch.allclose(again(images()), model(images()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("growth", [0.05, 0.08])
def test_growth_stays_under_its_bound(growth: float) -> None:
    model = build("test_vit")
    start = finished(model, max_growth=growth)
    layers = sum(site.delta.numbers for site in deltas(model))  # type: ignore[union-attr]
    assert 0.8 * growth * layers < numbers(start) <= growth * layers
    kept = torch.cat([t[name].abs().flatten() for t in start.tensors.values() for name in ("K1", "K2")])
    assert kept[kept > 0].min() > 1e-5


def test_a_rank_that_lost_a_half_goes_whole() -> None:
    model = build("test_vit")
    allocation = HALRP.Settings(rank=3, sites=("blocks.0.attn.qkv", "blocks.0.mlp.fc1"))
    attach(model, [allocation], "head")
    disturb(model)
    actual = {site.name: site.delta for site in deltas(model)}
    with torch.no_grad():
        actual["blocks.0.attn.qkv"].K1[:, 1] = 1e-7  # type: ignore[union-attr, index]
        actual["blocks.0.mlp.fc1"].K2.zero_()  # type: ignore[union-attr]
    start = HALRP.finish(allocation, actual)  # type: ignore[arg-type]
    assert start is not None
    assert {s.rank: s.sites for s in start.settings} == {2: ("blocks.0.attn.qkv",), 1: ("blocks.0.mlp.fc1",)}  # type: ignore[attr-defined]


def test_a_bound_below_its_scales_is_an_error() -> None:
    with pytest.raises(DeltaError, match=r"R and S alone have more than max_growth 0\.001"):
        finished(build("test_vit"), max_growth=0.001)
