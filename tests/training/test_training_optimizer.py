"""Parameter groups and schedules."""

import copy
import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import distill.models.cifar  # noqa: F401 - registers its networks with timm
from distill.deltas.adapter import Adapter
from distill.deltas.attach import attach
from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift
from distill.models.features import FeatureShapes
from distill.models.student import head_modules
from distill.objectives.icd import ICD
from distill.training.layer_decay import layer_scales
from distill.training.optimizer import build_optimizer, build_schedule, lr_factor, parameter_groups
from distill.training.settings import OptimizerSettings, ScheduleSettings, TrainingSettings

SETTINGS = OptimizerSettings(lr=0.1, weight_decay=0.3)


def decaying(root: nn.Module, settings: OptimizerSettings = SETTINGS) -> dict[str, bool]:
    """Every trainable parameter's name, and whether it decays."""
    groups = parameter_groups(root, [], settings)
    decay = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}  # type: ignore
    names = {name: decay.pop(id(p)) for name, p in root.named_parameters() if p.requires_grad}
    assert not decay
    return names


def test_vectors_do_not_decay() -> None:
    model = timm.create_model("test_efficientnet")
    decays = decaying(model)
    assert decays["conv_stem.weight"] and decays["classifier.weight"]
    assert not any(decays[name] for name in decays if "bn" in name or name.endswith("bias"))


def test_all_may_decay_but_what_is_exempt() -> None:
    root = nn.ModuleList([nn.BatchNorm1d(4), ICD(ICD.Settings(), FeatureShapes(4, 8), FeatureShapes(4, 8))])
    decays = decaying(root, SETTINGS.model_copy(update={"decay": "all"}))
    assert not decays.pop("1.tau") and all(decays.values())


@pytest.mark.parametrize("clip", [False, True])
def test_lars_is_that_of_timm(clip: bool) -> None:
    """Where matrices decay and vectors do not, which timm's version does not adapt."""
    settings = OptimizerSettings(type="lars", lr=0.5, weight_decay=0.1, nesterov=False, trust=0.02, trust_clip=clip)
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(layer[1].weight)  # of no length, as a new delta
    other = copy.deepcopy(layer)
    own = build_optimizer(layer, [], settings)
    timms = timm.optim.Lars(
        parameter_groups(other, [], settings), lr=0.5, momentum=0.9, trust_coeff=0.02, trust_clip=clip
    )
    for step in range(3):
        for model, optimizer in ((layer, own), (other, timms)):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            optimizer.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients)), "after_step reads them"
        for a, b in zip(layer.parameters(), other.parameters()):
            torch.testing.assert_close(a, b)
    assert [group["weight_decay"] for group in own.param_groups] == [0.1, 0.0]
    assert "trust=0.02" in repr(own)


def test_momentum_with_and_without_nesterov() -> None:
    """By hand, lr 0.1, momentum 0.9, a gradient of 1: plain 0.1 + 0.19, Nesterov's 0.19 + 0.271."""
    for nesterov, expected in ((False, -0.29), (True, -0.461)):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        settings = OptimizerSettings(type="sgd", lr=0.1, weight_decay=0, nesterov=nesterov)
        optimizer = build_optimizer(layer, [], settings)
        for _ in range(2):
            layer.weight.grad = torch.ones(1, 1)
            optimizer.step()
        assert layer.weight.item() == pytest.approx(expected)


def test_deltas_decay_as_they_declare() -> None:
    model = timm.create_model("test_efficientnet").requires_grad_(False)
    attach(model, [LowRank.Settings(rank=2), ScaleShift.Settings(sites=("bn1",))], exclude_head=["classifier"])
    decays = decaying(model)
    assert {name.rpartition(".")[2]: value for name, value in decays.items()} == {
        "A": True, "B": True, "scale": False, "shift": False,
    }  # fmt: skip


def test_temperatures_do_not_decay() -> None:
    term = ICD(ICD.Settings(), FeatureShapes(4, 8), FeatureShapes(4, 8))
    decays = decaying(nn.ModuleList([term]))
    assert not decays["0.tau"] and decays["0.student_projector.weight"] and not decays["0.student_projector.bias"]


@pytest.mark.parametrize(
    ("make", "exempt"),
    [
        (lambda: timm.create_model("test_vit"), ["pos_embed", "cls_token"]),
        (
            lambda: timm.models.swin_transformer.SwinTransformer(
                img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1,), num_heads=(2,)
            ),
            ["layers.0.blocks.0.attn.relative_position_bias_table"],
        ),
    ],
    ids=["vit", "swin"],
)
def test_timms_own_exemptions_are_kept(make, exempt: list[str]) -> None:
    """timm names them on the whole model, by their path in it."""
    model = make()
    decays = decaying(nn.ModuleList([model]))
    for name in exempt:
        assert model.get_parameter(name).ndim > 1 and not decays[f"0.{name}"]
    assert sum(decays.values()) > 3


def test_head_has_a_rate_of_its_own_and_nothing_comes_twice() -> None:
    model = timm.create_model("test_efficientnet")
    settings = OptimizerSettings(lr=0.1, head_lr_factor=10)
    groups = parameter_groups(model, head_modules(model), settings)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))  # type: ignore
    assert rates[id(model.classifier.weight)] == rates[id(model.classifier.bias)] == 1.0
    assert rates[id(model.conv_stem.weight)] == 0.1


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "resnet8x4_cifar"])
def test_layer_decay_is_timms(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    expected = {
        id(p): 0.1 * group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for p in group["params"]
    }
    settings = OptimizerSettings(lr=0.1, layer_decay=0.5)
    groups = parameter_groups(nn.ModuleList([model, nn.Linear(2, 2)]), [], settings, model)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}  # type: ignore
    assert {parameter: rates[parameter] for parameter in expected} == pytest.approx(expected)
    assert len(set(expected.values())) > 3 and max(rates.values()) == 0.1
    assert len(rates) == len(expected) + 2, "a projector outside the network has the full rate"


def test_layer_decay_of_deltas_is_that_of_their_layers() -> None:
    model = timm.create_model("test_efficientnet")
    plain = {name: rate for name, rate in layer_rates(model).items() if name.startswith("blocks.1.0.conv_exp")}
    attach(model, [LowRank.Settings(rank=2), Adapter.Settings(hidden=2)], exclude_head=["classifier"])
    rates = layer_rates(model)
    low_rank = {name: rate for name, rate in rates.items() if name.startswith("blocks.1.0.conv_exp.param")}
    assert len(low_rank) == 3 and set(low_rank.values()) == set(plain.values()) != {1.0}
    [adapter] = [module for name, module in model.named_children() if name == "structural_0"]
    assert len(adapter.names) > 2
    for number, block in enumerate(adapter.names):
        own = {rate for name, rate in rates.items() if name.startswith(f"structural_0.adapters.{number}.")}
        assert own == {max(rate for name, rate in rates.items() if name.startswith(f"{block}."))}
    assert (
        rates["classifier.weight"] == 1.0 and min(rates.values()) == rates["conv_stem.parametrizations.weight.original"]
    )


def layer_rates(model: nn.Module) -> dict[str, float]:
    scales = layer_scales(model, 0.5)
    return {name: scales[id(parameter)] for name, parameter in model.named_parameters()}


def test_layer_decay_needs_an_order_of_layers() -> None:
    with pytest.raises(ValueError, match=r"training\.optimizer\.layer_decay: Linear does not declare the order of its"):
        layer_scales(nn.Linear(2, 2), 0.5)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), [], SETTINGS)


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"type": "constant"}, {0: 1, 5: 1, 10: 1}),
        ({"type": "cosine"}, {0: 1, 5: 0.5, 10: 0, 11: 0}),
        ({"type": "cosine", "final": 0.1}, {0: 1, 5: 0.55, 10: 0.1}),
        ({"type": "cosine", "warmup": 2}, {0: 0.01, 0.5: 0.25, 1: 0.5, 2: 1, 6: 0.5, 4: 0.5 * (1 + math.sqrt(0.5))}),
        ({"type": "steps", "milestones": (3, 6)}, {2.99: 1, 3: 0.1, 5.99: 0.1, 6: 0.01}),
        ({"type": "steps", "milestones": (3,), "gamma": 0.5, "warmup": 4}, {2: 0.5, 4: 0.5}),
    ],
)
def test_schedules_by_hand(settings: dict, factors: dict[float, float]) -> None:
    for epoch, factor in factors.items():
        assert lr_factor(epoch, 10, ScheduleSettings(**settings)) == pytest.approx(factor), epoch


def test_the_schedule_moves_every_group_by_the_batch() -> None:
    model = timm.create_model("test_efficientnet")
    optimizer = build_optimizer(model, head_modules(model), OptimizerSettings(lr=0.1, head_lr_factor=10))
    schedule = build_schedule(optimizer, ScheduleSettings(warmup=1), epochs=2, steps_per_epoch=4)
    seen = []
    for _ in range(6):
        seen.append({round(group["lr"], 6) for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert seen[0] == {0.001, 0.01} and seen[2] == {0.05, 0.5} and seen[4] == {0.1, 1.0}


def test_schedules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.milestones and schedule\.type: steps are given together"):
        TrainingSettings(schedule=ScheduleSettings(milestones=(3,)))
    with pytest.raises(ValueError, match="shorter than epochs"):
        TrainingSettings(epochs=2, schedule=ScheduleSettings(warmup=2))


def test_adamw_is_torchs() -> None:
    layer_a, layer_b = nn.Linear(3, 2), nn.Linear(3, 2)
    layer_b.load_state_dict(layer_a.state_dict())
    mine = build_optimizer(layer_a, [], SETTINGS)
    plain = torch.optim.AdamW([{"params": [layer_b.weight], "weight_decay": 0.3}, {"params": [layer_b.bias]}], lr=0.1,
                              weight_decay=0.0)  # fmt: skip
    for _ in range(3):
        for layer, optimizer in ((layer_a, mine), (layer_b, plain)):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert torch.allclose(layer_a.weight, layer_b.weight) and torch.allclose(layer_a.bias, layer_b.bias)
