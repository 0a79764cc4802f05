"""Sites, freezing, composing, merging, state: what holds for every weight delta on real timm models."""

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from deltas_models import build, disturb, images, relative
from torch import nn

from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError, DeltaSettings, StructuralDelta, WeightDelta
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_bytes, delta_state, load_delta_state
from distill.registry import Family

MODELS = ["test_efficientnet", "test_resnet", "test_vit", "test_nfnet"]
METHODS = [LowRank.Settings(rank=2), ScaleShift.Settings(), Bias.Settings(), Dense.Settings()]


def test_the_family_finds_every_method() -> None:
    assert {"bias", "dense", "low_rank", "scale_shift"} <= set(Family("distill.deltas", "WeightDelta").known())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s.type)
def test_identity_then_merge(name: str, settings: DeltaSettings) -> None:
    model = build(name)
    modules = {n: type(m) for n, m in model.named_modules()}
    x = images()
    with torch.no_grad():
        plain = model(x)
    sites = attach(model, [settings], classifier_names(model))
    with torch.no_grad():
        assert torch.equal(model(x), plain), "not the identity at step 0"
    assert all(isinstance(model.get_submodule(n), kind) for n, kind in modules.items())
    assert sites and all(not site.name.startswith(classifier_names(model)) for site in sites)

    disturb(model)
    with torch.no_grad():
        unmerged = model(x)
        assert relative(unmerged, plain) > 1e-4
        merge(model)
        merged = model(x)
    assert relative(merged, unmerged) <= 1e-5 and torch.equal(merged.argmax(1), unmerged.argmax(1))
    assert {n: type(m) for n, m in model.named_modules()} == modules
    assert not deltas(model) and model.state_dict().keys() == build(name).state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_deltas_and_head_only(name: str) -> None:
    model = build(name)
    head = classifier_names(model)
    attach(model, [LowRank.Settings(rank=2), Bias.Settings()], head)
    frozen = {n: t.clone() for n, t in backbone_state(model, head).items()}
    disturb(model)
    model(images()).square().sum().backward()
    trained = {id(p) for site in deltas(model) for p in site.delta.parameters()}
    trained |= {id(p) for n in head for p in model.get_submodule(n).parameters()}
    for n, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in trained), n
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(frozen[n], t) for n, t in backbone_state(model, head).items())


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
    load_delta_state(other, state)
    assert all(torch.equal(t, state[n]) for n, t in delta_state(other).items())
    bad = dict(state)
    bad["layer9.A"] = bad.pop("conv1.0.A") if "conv1.0.A" in bad else bad.pop(next(iter(bad)))
    name = next(n for n in bad if n.endswith(".B"))
    bad[name] = bad[name][:, :-1]
    fresh = build("test_resnet")
    attach(fresh, [LowRank.Settings(rank=2)], "fc")
    before = {n: t.clone() for n, t in delta_state(fresh).items()}
    with pytest.raises(DeltaError, match=r"(?s)missing .*unexpected layer9.A.*expected") as caught:
        load_delta_state(fresh, bad)
    assert name in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in delta_state(fresh).items())


def test_initialisation_repeats_under_a_seed() -> None:
    states = []
    for _ in range(2):
        model = build("test_resnet")
        torch.manual_seed(7)
        attach(model, [LowRank.Settings(rank=2)], "fc")
        states.append(delta_state(model))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("name", MODELS)
def test_deepcopy_is_independent(name: str) -> None:
    model = build(name)
    attach(model, [LowRank.Settings(rank=2), ScaleShift.Settings()], classifier_names(model))
    disturb(model)
    x = images(2)
    with torch.no_grad():
        expected = model(x)
        twin = copy.deepcopy(model)
        assert len(deltas(twin)) == len(deltas(model)) and torch.equal(twin(x), expected)
        merge(twin)
        disturb(twin)
        assert deltas(model) and torch.equal(model(x), expected)


def test_bf16_autocast_and_channels_last() -> None:
    model = build("test_efficientnet").to(memory_format=torch.channels_last)
    attach(model, [LowRank.Settings(rank=2), Bias.Settings(), ScaleShift.Settings(sites="*.conv_dw")], "classifier")
    disturb(model)
    x = images().to(memory_format=torch.channels_last)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and relative(y.float(), exact) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    model = build("test_efficientnet")
    attach(model, [LowRank.Settings(rank=2), ScaleShift.Settings()], "classifier")
    disturb(model)
    x = images(2, 64)
    model(x).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(model)(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(p.grad, expected[n]) for n, p in model.named_parameters() if p.requires_grad)


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


@pytest.mark.slow
def test_torch_compile() -> None:
    model = build("test_efficientnet")
    attach(model, [LowRank.Settings(rank=2), ScaleShift.Settings(sites="*.conv_dw")], "classifier")
    disturb(model)
    x = images(2, 64)
    model(x).square().mean().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.compile(model)(x).square().mean().backward()
    for n, p in model.named_parameters():
        if n in expected:
            assert relative(p.grad, expected[n]) < 1e-3, n
