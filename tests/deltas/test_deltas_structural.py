"""What every structural delta must keep, whatever it adds. Found by discovery, so that a new one is tested too."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from deltas_models import build, disturb, images, relative
from deltas_processes import run_apart
from torch import nn

from augment.base import Registry
from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError, DeltaSettings
from distill.deltas.dense import Dense
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, save_delta
from distill.models.fingerprint import fingerprint
from distill.models.network import extract

METHODS: dict[str, DeltaSettings] = {
    name: settings()  # type: ignore[misc]
    for name, settings in Registry("distill.deltas", "StructuralDelta").known().items()
}
VARIANTS: dict[str, DeltaSettings] = METHODS | {
    name: type(METHODS[name.partition(" ")[0]])(**changes)
    for name, changes in {
        "deep_delta values": {"values": 4, "gate": "mlp", "gate_hidden": 8, "value": "sigmoid"},
        "deep_delta write only": {"write_only": True},
        "adapter plain": {"scale": False, "kernel": 1, "act": "silu", "hidden": 3},
        "ladder new": {"init": "random", "every": 2, "reduction": 4},
    }.items()
}
MODELS = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"]

every_method = pytest.mark.parametrize("name", METHODS)
every_variant = pytest.mark.parametrize("name", VARIANTS)


def with_delta(model: str, name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(1)
    network = build(model, **arguments)
    attach(network, [VARIANTS[name]], classifier_names(network))
    return network


def view(model: str, count: int = 2) -> torch.Tensor:
    """An odd number of pixels where the network takes that."""
    return images(count) if "vit" in model else images(count, 97, 75)


@pytest.mark.parametrize("model", MODELS)
@every_variant
def test_identity_names_and_gradients(model: str, name: str) -> None:
    plain, x = build(model), view(model)
    before = plain(x).detach()
    frozen = {n: t.clone() for n, t in plain.state_dict().items()}
    network = with_delta(model, name)
    network.eval()
    assert torch.equal(network(x), before), "not the identity at step 0"
    (site,) = deltas(network)
    assert site.delta.is_identity()
    head = classifier_names(network)
    assert backbone_state(network, head).keys() | {n for n in frozen if n.startswith(head)} == frozen.keys()

    disturb(network)
    assert not site.delta.is_identity()
    network.train()
    network(x).square().sum().backward()
    trained = {id(p) for p in site.delta.parameters()}
    trained |= {id(p) for n in head for p in network.get_submodule(n).parameters()}
    for n, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in trained), n
    network.eval()
    with torch.no_grad():
        assert relative(network(x), before) > 1e-4
    moved = backbone_state(network, head)
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # .train() on a bare model moves them
    assert all(torch.equal(frozen[n], t) for n, t in moved.items() if not n.endswith(statistics))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
@every_method
def test_the_first_step_leaves_the_identity(model: str, name: str) -> None:
    """Gradient descent gets away from the start, where most of a delta has no gradient yet."""
    network, x = with_delta(model, name), view(model, 4)
    optimizer = torch.optim.SGD(deltas(network)[0].delta.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and not deltas(network)[0].delta.is_identity()


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
@every_variant
def test_deepcopy_is_independent_and_merging_is_refused(model: str, name: str) -> None:
    network, x = with_delta(model, name), view(model)
    network.eval()
    disturb(network)
    with torch.no_grad():
        expected = network(x)
        twin = copy.deepcopy(network)
        assert torch.equal(twin(x), expected)
        disturb(twin)
        assert torch.equal(network(x), expected) and not torch.equal(twin(x), expected)
    with pytest.raises(
        DeltaError, match=r"is structural: it cannot be merged.*a weight delta such as low_rank, which can"
    ):
        merge(network)


@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit"])
@every_variant
def test_bf16_autocast_and_channels_last(model: str, name: str) -> None:
    network = with_delta(model, name).to(memory_format=torch.channels_last)
    disturb(network)
    x = view(model).to(memory_format=torch.channels_last)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and relative(y.float(), exact) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit"])
@every_variant
def test_all_that_timm_gives_shows_it(model: str, name: str) -> None:
    """Logits by themselves and by way of maps and pooled features are the same."""
    from distill.models.network import extract

    network, x = with_delta(model, name), view(model)
    network.eval()
    disturb(network)
    with torch.no_grad():
        features = extract(network, x, frozenset({"logits", "pooled", "maps"}))
        assert relative(features.logits, network(x)) < 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A delta file of every variant on a CNN and a ViT, and the logits of the model that was saved."""
    folder = tmp_path_factory.mktemp("saved")
    logits = {}
    for model in ("test_efficientnet", "test_vit"):
        for name in VARIANTS:
            network = build(model)
            backbone = fingerprint(backbone_state(network, classifier_names(network)))
            attach(network, [VARIANTS[name]], classifier_names(network))
            network.eval()
            disturb(network)
            save_delta(folder / f"{model} {name}", network, backbone, origin="random")
            with torch.no_grad():
                logits[f"{model} {name}"] = network(view(model))
    return folder, logits


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, logits = saved
    run_apart(_load, (str(folder), list(logits)))
    actual = torch.load(folder / "found.pt", weights_only=True)
    assert actual.keys() == logits.keys()
    assert [name for name in logits if not torch.equal(actual[name], logits[name])] == []


def _load(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    actual = {}
    with torch.no_grad():
        for name in names:
            model = name.partition(" ")[0]
            actual[name] = load_delta(Path(folder) / name, build(model))(view(model))
    torch.save(actual, f"{folder}/found.pt")


def test_several_deltas_come_back_in_their_order(tmp_path: Path) -> None:
    """Correctors do not commute; weight deltas and structural ones lie in one file."""
    specs = [
        METHODS["deep_delta"].model_copy(update={"sites": ("layer2.*",)}),
        METHODS["adapter"],
        Dense.Settings(sites="layer1.0.conv1"),
        METHODS["deep_delta"].model_copy(update={"sites": ("layer2.*",)}),
    ]
    network = build("test_resnet")
    backbone = fingerprint(backbone_state(network, ("fc",)))
    attach(network, specs, "fc")
    assert [site.delta.settings.type for site in deltas(network)] == ["dense", "deep_delta", "adapter", "deep_delta"]
    network.eval()
    disturb(network)
    manifest = save_delta(tmp_path / "delta", network, backbone, origin="random")
    assert [group.sites for group in manifest.deltas][1:] == [("structural_0",), ("structural_1",), ("structural_2",)]
    with torch.no_grad():
        again = load_delta(tmp_path / "delta", build("test_resnet"))
        assert torch.equal(again(view("")), network(view("")))


@every_method
def test_what_was_not_learned_is_not_written(name: str, tmp_path: Path) -> None:
    network = build("test_resnet")
    backbone = fingerprint(backbone_state(network, ("fc",)))
    attach(network, [METHODS[name]], "fc")
    with pytest.raises(ExportError, match="all 1 deltas leave the backbone unchanged"):
        save_delta(tmp_path, network, backbone, origin="random")


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    run_apart(_ddp_rank, (str(tmp_path), list(METHODS)), count=2)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert differences.keys() == METHODS.keys() and max(differences.values()) < 1e-3, differences


def _ddp_rank(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    differences = {}
    for name in names:
        network = with_delta("test_resnet", name)
        disturb(network)
        alone = copy.deepcopy(network)
        (alone(view("", 4)).square().sum() / 2).backward()
        x = view("", 4)[2 * rank : 2 * rank + 2]
        parallel = nn.parallel.DistributedDataParallel(network)  # it must outlive the backward pass
        parallel(x).square().sum().backward()
        pairs = [(p.grad, q.grad) for p, q in zip(network.parameters(), alone.parameters()) if p.requires_grad]
        differences[name] = max(relative(p, q) for p, q in pairs)
    if rank == 0:
        (Path(folder) / "differences.json").write_text(json.dumps(differences))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@every_method
def test_torch_compile(name: str) -> None:
    """Traced, forward and backward; one is compiled too."""
    check_compiled("test_vit", name, "inductor" if name == "adapter" else "aot_eager")


@pytest.mark.slow
def test_torch_compile_of_a_cnn() -> None:
    """The first stage stands for the others: what is compiled in each is the same, and takes as long again."""
    check_compiled("test_resnet", "deep_delta", "inductor", "layer1")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
@every_method
def test_a_whole_network_is_one_graph(model: str, name: str) -> None:
    """What the student compiles, without a graph break."""
    torch.compiler.reset()
    network, x, needs = with_delta(model, name), view(model), frozenset({"logits", "maps"})
    disturb(network)
    traced = torch.compile(extract, backend="eager", fullgraph=True)
    with torch.no_grad():
        actual, expected = traced(network, x, needs), extract(network, x, needs)
    assert actual.maps.keys() == expected.maps.keys() and len(expected.maps) > 1
    for tensor, other in zip(actual.tensors(), expected.tensors(), strict=True):
        assert relative(tensor, other) < 1e-5


def check_compiled(model: str, name: str, backend: str, stage: str = "") -> None:
    torch.compiler.reset()
    network, x = with_delta(model, name, **({"depth": 1} if "vit" in model else {})), view(model)
    disturb(network)
    part = network.get_submodule(stage)
    if stage:
        x = torch.randn(2, 32, 11, 9, generator=torch.Generator().manual_seed(0))
    part(x).square().mean().backward()
    expected = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    assert any(n.startswith("structural_0.") for n in expected)
    network.zero_grad()
    torch.compile(part, backend=backend)(x).square().mean().backward()
    for n, p in network.named_parameters():
        if n in expected:
            assert p.grad is not None and relative(p.grad, expected[n]) < 1e-3, n


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "deep_delta",
            {"sites": ("layer5.*",)},
            "deep_delta: pattern 'layer5.*' matches no block; did you mean 'layer",
        ),
        ("adapter", {"sites": ("layr1",)}, "adapter: pattern 'layr1' matches no block; did you mean 'layer1'"),
        ("ladder", {"exclude": ("layer9",)}, "ladder: exclude pattern 'layer9' matches no block; did you mean 'layer"),
        ("adapter", {"exclude": ("*",)}, "adapter: all blocks that its sites match are excluded"),
        ("deep_delta", {"kinds": ("conv",)}, "kinds select layers, and it is attached to blocks; leave kinds out"),
        ("deep_delta", {"values": 7}, "'layer1.0' has 32 channels, which values: 7 does not divide"),
        (
            "output",
            {"sites": ("layer1",)},
            "output: it is attached to the classifier; leave sites, exclude and kinds out",
        ),
    ],
)
def test_errors_name_the_block(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DeltaError) as caught:
        attach(build("test_resnet"), [METHODS[name].model_copy(update=changes)], "fc")
    assert message in str(caught.value)


FAMILIES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnext26ts": {},
    "mobilenetv3_small_050": {},
    "tf_efficientnet_lite0": {},
    "test_convnext": {},
    "test_nfnet": {},
    "regnety_002": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2)},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
    "efficientformer_l1": {"embed_dims": (16, 32, 48, 64)},
    "mvitv2_tiny": {},
    "vgg11": {"mlp_ratio": 0.05},
}
NOT_FOR = {
    ("eva02_tiny_patch14_224", "ladder"): "no side block can be pruned from 'blocks.0' .* set init: random",
    ("efficientformer_l1", "ladder"): "must all give maps, or all equally many tokens, .*'adapter'",
    ("mvitv2_tiny", "*"): "does not return one tensor of tokens or of a map; exclude it",
    ("vgg11", "*"): r"VGG declares no blocks \(timm's group_matcher\); use a weight delta, or 'output'",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Identity and change on networks as timm builds them, but small; where one does not fit, what would is named."""
    torch.manual_seed(0)
    arguments = FAMILIES[family]
    plain = timm.create_model(family, num_classes=5, **arguments).eval()
    x = images(1, 224 if family in ("efficientformer_l1", "mvitv2_tiny") else arguments.get("img_size", 64))
    with torch.no_grad():
        before = plain(x)
    for name, settings in METHODS.items():
        network = copy.deepcopy(plain)
        refusal = NOT_FOR.get((family, name)) or (NOT_FOR.get((family, "*")) if name != "output" else None)
        if refusal:
            with pytest.raises(DeltaError, match=refusal):
                attach(network, [settings], classifier_names(network))
            continue
        attach(network, [settings], classifier_names(network))
        with torch.no_grad():
            assert torch.equal(network(x), before), name
            disturb(network)
            assert not torch.equal(network(x), before), name
