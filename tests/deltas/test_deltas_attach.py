"""Sites, freezing, composing, merging, state: what holds for every weight delta on real timm models."""

import copy
import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from deltas_models import build, disturb, images, weight_deltas
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError, DeltaSettings, StructuralDelta, WeightDelta
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.state import backbone_state, delta_bytes, delta_state, load_exactly


def test_the_family_finds_every_method() -> None:
    assert {"bias", "dense", "low_rank", "scale_shift"} <= set(Registry("distill.deltas", "WeightDelta").known())


def test_backbone_state_keeps_the_names_and_bytes() -> None:
    model = build("test_efficientnet")
    plain = build("test_efficientnet").state_dict()
    attach(model, [ScaleShift.Settings(), Dense.Settings(sites="blocks.*")], "classifier")
    state = backbone_state(model)
    assert state.keys() == plain.keys() and all(torch.equal(state[n], plain[n]) for n in plain)


def test_names_of_the_state_do_not_depend_on_torch() -> None:
    model = build("test_vit")
    attach(
        model, [LowRank.Settings(rank=2, sites="blocks.0.attn.qkv[qv]"), Bias.Settings(sites="blocks.0.norm1")], "head"
    )
    assert {n: tuple(t.shape) for n, t in delta_state(model).items()} == {
        "blocks.0.norm1.0.shift": (64,),
        "blocks.0.attn.qkv[q].0.A": (1, 2, 64),
        "blocks.0.attn.qkv[q].0.B": (1, 64, 2),
        "blocks.0.attn.qkv[v].1.A": (1, 2, 64),
        "blocks.0.attn.qkv[v].1.B": (1, 64, 2),
    }
    assert delta_bytes(model) == 4 * (64 + 4 * 128)


def test_qkv_parts_change_their_rows_only() -> None:
    model = build("test_vit")
    before = model.blocks[0].attn.qkv.weight.clone(), model.blocks[0].attn.qkv.bias.clone()
    attach(model, [Dense.Settings(sites="blocks.0.attn.qkv[v]"), Bias.Settings(sites="blocks.0.attn.qkv[k]")], "head")
    disturb(model)
    changed = [
        (a != b).reshape(192, -1).any(1)
        for a, b in zip(before, (model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.bias))
    ]
    assert changed[0].nonzero().flatten().tolist() == list(range(128, 192))
    assert changed[1].nonzero().flatten().tolist() == list(range(64, 128))


def test_deltas_compose_in_declared_order() -> None:
    layer = nn.Sequential(nn.Linear(4, 3))
    weight, bias = layer[0].weight.clone(), layer[0].bias.clone()
    attach(layer, [Dense.Settings(), ScaleShift.Settings(), Bias.Settings()])
    dense, scale, shift = (site.delta for site in deltas(layer))
    disturb(layer)
    g = 1 + scale.scale
    torch.testing.assert_close(layer[0].weight, g[:, None] * (weight + dense.D))
    torch.testing.assert_close(layer[0].bias, g * bias + scale.shift + shift.shift)
    x = torch.randn(2, 4)
    torch.testing.assert_close(layer(x), x @ layer[0].weight.T + layer[0].bias)
    swapped = nn.Sequential(nn.Linear(4, 3))
    attach(swapped, [ScaleShift.Settings(), Dense.Settings()])
    assert [site.delta.settings.type for site in deltas(swapped)] == ["scale_shift", "dense"]


def test_load_is_strict_and_changes_nothing_on_failure() -> None:
    model, other = build("test_resnet"), build("test_resnet")
    for m in (model, other):
        attach(m, [LowRank.Settings(rank=2)], "fc")
    disturb(model)
    state = {n: t.clone() for n, t in delta_state(model).items()}
    load_exactly(delta_state(other), state, "delta")
    assert all(torch.equal(t, state[n]) for n, t in delta_state(other).items())
    bad = dict(state)
    bad["layer9.A"] = bad.pop("conv1.0.A") if "conv1.0.A" in bad else bad.pop(next(iter(bad)))
    name = next(n for n in bad if n.endswith(".B"))
    bad[name] = bad[name][:, :-1]
    fresh = build("test_resnet")
    attach(fresh, [LowRank.Settings(rank=2)], "fc")
    before = {n: t.clone() for n, t in delta_state(fresh).items()}
    with pytest.raises(DeltaError, match=r"(?s)missing .*unexpected layer9.A.*expected") as caught:
        load_exactly(delta_state(fresh), bad, "delta")
    assert name in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in delta_state(fresh).items())


def test_initialization_repeats_under_a_seed() -> None:
    states = []
    for _ in range(2):
        model = build("test_resnet")
        torch.manual_seed(7)
        attach(model, [LowRank.Settings(rank=2)], "fc")
        states.append(delta_state(model))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


class Double(StructuralDelta):
    """The smallest structural delta: a gain on the output of one block."""

    class Settings(DeltaSettings):
        type: Literal["double"] = "double"

    def __init__(self, settings: DeltaSettings, backbone: nn.Module):
        super().__init__(settings, backbone)
        self.gain = nn.Parameter(torch.ones(()))

    def attach(self, backbone: nn.Module) -> None:
        backbone.get_submodule(self.settings.sites[0]).register_forward_hook(self.scale)

    def scale(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return self.gain * output


def test_structural_deltas_fit_the_contract() -> None:
    model = build("test_vit")
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    x = images(2)
    with torch.no_grad():
        before = model(x)
        attach(model, [Double.Settings(sites="blocks.0"), Bias.Settings()], "head")
        assert torch.equal(model(x), before)
        assert delta_state(model)["structural_0.0.gain"] == 1
        assert backbone_state(model).keys() == plain.keys()
        twin = copy.deepcopy(model)
        twin.structural_0.gain.fill_(0.5)
        assert torch.equal(model(x), before) and not torch.equal(twin(x), before)
    with pytest.raises(DeltaError, match=r"'structural_0' \(double\) is structural: it cannot be merged"):
        merge(model)


class Outer(WeightDelta):
    """A user's own method: one column added to every row."""

    class Settings(DeltaSettings):
        type: str = "outer"

    def __init__(self, settings: DeltaSettings, layer: nn.Module):
        super().__init__(settings, layer)
        self.v = nn.Parameter(torch.zeros(layer.weight.shape[1:]))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.v


def test_a_users_own_method() -> None:
    model = build("test_vit")
    assert len(attach(model, [Outer.Settings(sites="blocks.*.mlp.fc1")], "head")) == len(model.blocks)


WIDE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(24, 16),
    "grouped": lambda: nn.Conv2d(24, 16, 3, padding=1, groups=2),
    "strided": lambda: nn.Conv2d(24, 16, 3, stride=2),
}


@pytest.mark.parametrize("kind", WIDE)
def test_pairs_compose_in_declared_order(kind: str) -> None:
    """Every ordered pair of methods on one layer is the second's change of the first's; some pairs do not commute."""
    layer_kind = "linear" if kind == "linear" else "conv"
    methods = {name: spec for name, spec in weight_deltas().items() if layer_kind in spec.component.kinds}
    apart = set()
    for first, second in itertools.permutations(methods, 2):
        torch.manual_seed(0)
        model = nn.Sequential(WIDE[kind]()).eval()
        weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
        attach(model, [methods[first], methods[second]])
        model.eval()
        disturb(model)
        former, latter = (site.delta for site in deltas(model))
        assert (former.settings.type, latter.settings.type) == (first, second)
        with torch.no_grad():
            torch.testing.assert_close(model[0].weight, latter(former(weight)))
            torch.testing.assert_close(model[0].bias, latter.bias(former.bias(bias)))
            if not torch.allclose(former(latter(weight)), latter(former(weight)), atol=1e-6):
                apart.add(frozenset({first, second}))
            shape = (2, 24) if kind == "linear" else (2, 24, 7, 7)
            x = torch.randn(shape)
            changed = model(x)
        torch.testing.assert_close(model(x), changed)
        merge(model)
        torch.testing.assert_close(model(x), changed, rtol=1e-4, atol=1e-5)
    assert {frozenset({"dense", "scale_shift"}), frozenset({"dora", "low_rank"}), frozenset({"halrp", "ia3"})} <= apart
    assert frozenset({"dense", "low_rank"}) not in apart
