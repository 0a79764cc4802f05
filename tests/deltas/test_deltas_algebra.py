"""What methods declare for the algebra holds, for every method there is; chains add up as the equations say."""

import pytest
import torch
from torch import nn

from augment.base import Registry
from distill.deltas.algebra import Link, added, compact, scaled
from distill.deltas.attach import attach_delta, deltas
from distill.deltas.base import DeltaError, DeltaTensors, WeightDelta
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.sites import Target

LAYERS = {
    "linear": lambda: nn.Linear(96, 64),
    "conv": lambda: nn.Conv2d(16, 12, 3),
    "depthwise": lambda: nn.Conv2d(12, 12, 5, groups=12),
    "norm": lambda: nn.BatchNorm2d(12),
}
METHODS = {
    name: settings
    for name, settings in Registry("distill.deltas", "Delta").known().items()
    if issubclass(settings.component, WeightDelta)
}


def layer_of(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layer = LAYERS[kind]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return layer.requires_grad_(False)


def change(layer: nn.Module, chain) -> dict[str, torch.Tensor]:
    holder = nn.Module()
    holder.add_module("layer", layer)
    for link in chain:
        attach_delta(holder, link.learned.settings, Target("layer", "layer"))
    for site, link in zip(deltas(holder), chain, strict=True):
        site.delta.load_state_dict(link.learned.tensors)
    with torch.no_grad():
        return {n: getattr(layer, n) - p.original for n, p in layer.parametrizations.items()}


def link(settings, kind: str, seed: int = 1) -> Link:
    """A delta with random numbers in all its floating tensors."""
    holder = nn.Module()
    holder.add_module("layer", layer_of(kind))
    attach_delta(holder, settings, Target("layer", "layer"))
    delta = deltas(holder)[0].delta
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
        for name, t in delta.state_dict().items()
    }
    return Link("layer", DeltaTensors(delta.settings, tensors))


def close(a, b, tolerance=2e-5):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance * float(b[name].abs().max())), name


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_declares_is_so(name):
    method, actual = METHODS[name].component, 0
    for kind in sorted(method.kinds):
        try:
            former, latter = link(METHODS[name](), kind, 1), link(METHODS[name](), kind, 2)
        except DeltaError:
            continue  # this layer cannot carry it
        actual += 1
        assert method.proportional_to <= set(former.learned.tensors) | {"scale", "shift"}
        first = change(layer_of(kind), [former])
        if method.additive:
            elsewhere = change(layer_of(kind, seed=7), [former])
            close(first, elsewhere, 1e-4)
        if method.proportional_to:
            (times,) = scaled((former,), -2.5)
            close(change(layer_of(kind), [times]), {n: -2.5 * t for n, t in first.items()}, 1e-4)
        both = method.summed([former.learned, latter.learned])
        if both is not None:
            second = change(layer_of(kind), [latter])
            close(change(layer_of(kind), [Link("layer", both)]), {n: first[n] + second[n] for n in first}, 1e-4)
    assert actual


PAIRS = [
    ([LowRank.Settings(rank=2)], [LowRank.Settings(rank=3, alpha=6)]),
    ([LowRank.Settings(rank=2)], [Dense.Settings(), Bias.Settings()]),
    ([ScaleShift.Settings()], [LowRank.Settings(rank=2)]),
    ([LowRank.Settings(rank=2)], [ScaleShift.Settings(), Bias.Settings()]),
    ([ScaleShift.Settings(), Bias.Settings()], [ScaleShift.Settings(), LowRank.Settings(rank=1)]),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(s.type for side in pair for s in side))
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_sums_and_multiples_of_chains(kind, pair):
    a, b = ([link(s, kind, seed=10 * side + i) for i, s in enumerate(chain)] for side, chain in enumerate(pair))
    changes = [change(layer_of(kind), chain) for chain in (a, b)]
    expected = {
        n: sum(-2.0 * c[n] if i else c[n] for i, c in enumerate(changes) if n in c) for n in changes[0] | changes[1]
    }
    together = added(tuple(a), scaled(tuple(b), -2.0))
    close(change(layer_of(kind), together), expected)


def test_low_ranks_lie_side_by_side_and_cancel():
    a, b = link(LowRank.Settings(rank=2), "conv", 1), link(LowRank.Settings(rank=3), "conv", 2)
    (both,) = added((a,), (b,))
    assert both.learned.settings.rank == 5 and both.learned.tensors["A"].shape[1] == 5
    (back,) = added((both,), scaled((b,), -1))
    assert all(torch.equal(back.learned.tensors[n], a.learned.tensors[n]) for n in ("A", "B"))
    for each in (a, b):
        each.learned.tensors["B"][:, 0] = 0  # a direction is gone where all of its B is zero, not where some is
    assert added((a,), (b,))[0].learned.settings.rank == 5


def test_low_ranks_as_large_as_the_layer_stay_two():
    a, b = link(LowRank.Settings(rank=20), "linear", 1), link(LowRank.Settings(rank=20), "linear", 2)
    assert len(added((a,), (b,))) == 2


def test_what_does_not_commute_has_no_sum():
    scale, low = link(ScaleShift.Settings(), "conv"), link(LowRank.Settings(rank=2), "conv")
    assert scaled((low, scale), 2) is None  # (1 + s)(W + BA) − W is not proportional to s and B together
    assert added((low, scale), (scale,)) is None
    assert len(compact((low, scale, low))) == 3
    assert len(compact((scale, low, low))) == 2


def test_twice_the_same_scale_is_not_twice_its_offset():
    single = link(ScaleShift.Settings(), "norm")
    squared = change(layer_of("norm"), compact((single, single)))
    s, layer = single.learned.tensors["scale"], layer_of("norm")
    assert torch.allclose(squared["weight"], layer.weight * ((1 + s) ** 2 - 1), atol=1e-5)
