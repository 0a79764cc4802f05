"""What every weight delta must keep, whatever it computes. Found by discovery, so that a new one is tested too."""

import copy
from pathlib import Path

import pytest
import torch
from deltas_models import CONVS, build, conv_case, disturb, images, relative, weight_deltas
from deltas_processes import run_apart
from torch import nn

from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError, DeltaSettings, LayerRefused
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.delta.io import load_delta, save_delta
from distill.models.fingerprint import fingerprint

METHODS = weight_deltas()
MODELS = ["test_efficientnet", "test_resnet", "test_vit", "test_nfnet"]
REFUSED = {("branch", "test_vit"): "cannot be centered", ("norm_affine", "test_nfnet"): "matches no norm layer"}
CASES = [(model, name) for model in MODELS for name in METHODS if (name, model) not in REFUSED]

COSTS = ("l1", "l2", "nuclear", "cost", "orthogonality")
"""Settings that weigh a penalty."""

every_method = pytest.mark.parametrize("name", METHODS)


def with_delta(model: str, name: str, *more: DeltaSettings) -> nn.Module:
    network = build(model)
    attach(network, [METHODS[name], *more], classifier_names(network))
    for site in deltas(network):
        site.delta.eval()
    return network


def learned(network: nn.Module) -> set[int]:
    of_deltas = {id(p) for site in deltas(network) for p in site.delta.parameters()}
    return of_deltas | {id(p) for n in classifier_names(network) for p in network.get_submodule(n).parameters()}


@pytest.mark.parametrize(("model", "name"), CASES)
def test_identity_then_merge(model: str, name: str) -> None:
    """Channels last, an odd number of pixels where the network takes that."""
    plain = build(model).to(memory_format=torch.channels_last)
    x = images(3) if "vit" in model else images(3, 97, 75)
    x = x.to(memory_format=torch.channels_last)
    modules = {n: type(m) for n, m in plain.named_modules()}
    keys = plain.state_dict().keys()
    with torch.no_grad():
        before = plain(x)
    network = plain
    attach(network, [METHODS[name]], classifier_names(network))
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(network(x), before), "not the identity at step 0"
    assert relative(network(x), before) <= 1e-5, "the cheap way is not the identity at step 0"

    disturb(network)
    for site in deltas(network):
        site.delta.eval()
    trained = network(x)
    with torch.no_grad():
        unmerged = network(x)
        assert relative(unmerged, before) > 1e-4
        merge(network)
        merged = network(x)
    for other in (unmerged, trained):
        assert relative(merged, other) <= 1e-5 and torch.equal(merged.argmax(1), other.argmax(1))
    assert {n: type(m) for n, m in network.named_modules()} == modules
    assert not deltas(network) and network.state_dict().keys() == keys


@pytest.mark.parametrize(("name", "model"), REFUSED)
def test_a_network_without_a_fitting_layer_is_an_error(name: str, model: str) -> None:
    with pytest.raises(DeltaError, match=REFUSED[name, model]):
        with_delta(model, name)


@pytest.mark.parametrize(("model", "name"), CASES)
def test_gradients_reach_the_delta_and_the_head_and_nothing_else(model: str, name: str) -> None:
    network = with_delta(model, name)
    head = classifier_names(network)
    frozen = {n: t.clone() for n, t in backbone_state(network, head).items()}
    disturb(network)
    network(images(2)).square().sum().backward()
    trained = learned(network)
    for n, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in trained), n
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(frozen[n], t) for n, t in backbone_state(network, head).items())


@pytest.mark.parametrize("kind", CONVS)
@every_method
def test_the_cheap_way_equals_the_definition(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and all gradients, in double precision, on every kind of conv; and the merged layer equals both."""
    settings = METHODS[name]
    wanted = "depthwise" if kind == "depthwise" else "linear" if kind.startswith("linear") else "conv"
    if wanted not in settings.component.kinds:
        pytest.skip(f"{name} does not change {wanted} layers")
    if kind == "linear_no_bias" and name == "bias":
        pytest.skip("no bias")
    unusual = {"oversized": "dense", "alpha": 3.0}  # a scale of one would hide that it is left out
    settings = settings.model_copy(update={k: v for k, v in unusual.items() if k in type(settings).model_fields})
    try:
        model, x, delta = conv_case(kind, settings)
    except DeltaError as error:
        assert "has no bias" in str(error)
        return
    inputs = [x, *delta.parameters()]
    cheap = model(x)
    target = torch.randn_like(cheap)
    cheap_gradients = torch.autograd.grad((cheap * target).sum(), inputs)
    monkeypatch.setattr(type(delta), "output", lambda self, layer, x: None)
    defined = model(x)
    torch.testing.assert_close(cheap, defined)
    for got, expected in zip(cheap_gradients, torch.autograd.grad((defined * target).sum(), inputs), strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        merge(model)
        torch.testing.assert_close(model(x), defined)


@every_method
def test_deepcopy_is_independent(name: str) -> None:
    network = with_delta("test_resnet", name)
    disturb(network)
    x = images(2)
    with torch.no_grad():
        expected = network(x)
        twin = copy.deepcopy(network)
        assert len(deltas(twin)) == len(deltas(network)) and torch.equal(twin(x), expected)
        merge(twin)
        disturb(twin)
        assert deltas(network) and torch.equal(network(x), expected)


@every_method
def test_bf16_autocast(name: str) -> None:
    network = with_delta("test_efficientnet", name).to(memory_format=torch.channels_last)
    disturb(network)
    x = images(2).to(memory_format=torch.channels_last)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and relative(y.float(), exact) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters() if p.requires_grad)


@every_method
def test_penalty_is_none_or_a_scalar_with_a_graph(name: str) -> None:
    settings = METHODS[name]
    costs = {key: 0.5 for key in COSTS if key in type(settings).model_fields}
    for spec, asked in ((settings.model_copy(update=dict.fromkeys(costs, 0.0)), False), (settings, None)):
        network = build("test_efficientnet")
        attach(network, [spec], "classifier")
        actual = [site.delta.penalty() for site in deltas(network)]
        assert len({term is None for term in actual}) == 1, "it depends on more than the settings"
        assert asked is None or all(term is None for term in actual)
    if costs:
        network = build("test_efficientnet")
        attach(network, [settings.model_copy(update=costs)], "classifier")
        disturb(network)
        total = sum(site.delta.penalty() for site in deltas(network))
        assert total.shape == () and total > 0
        total.backward()
        assert any(p.grad is not None and p.grad.any() for site in deltas(network) for p in site.delta.parameters())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A delta file of every method, and the logits of the model that was saved."""
    folder = tmp_path_factory.mktemp("saved")
    logits = {}
    for name in METHODS:
        network = build("test_efficientnet")
        backbone = fingerprint(backbone_state(network, ("classifier",)))
        attach(network, [METHODS[name]], "classifier")
        network.eval()
        disturb(network)
        save_delta(folder / name, network, backbone, origin="random")
        with torch.no_grad():
            logits[name] = network(images(2))
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
    x = images(2)
    with torch.no_grad():
        actual = {name: load_delta(Path(folder) / name, build("test_efficientnet"))(x) for name in names}
    torch.save(actual, f"{folder}/found.pt")


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    run_apart(_ddp_rank, (str(tmp_path), list(METHODS)), count=2)
    x = images(4)
    for name in METHODS:
        network = with_delta("test_efficientnet", name)
        disturb(network)
        (network(x).square().sum() / 2).backward()
        averaged = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        expected = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        assert averaged.keys() == expected.keys()
        for n in expected:
            torch.testing.assert_close(averaged[n], expected[n], rtol=1e-3, atol=1e-4 * float(expected[n].abs().max()))


def _ddp_rank(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    x = images(4)[2 * rank : 2 * rank + 2]
    for name in names:
        network = with_delta("test_efficientnet", name)
        disturb(network)
        parallel = nn.parallel.DistributedDataParallel(network)  # once it is gone, gradients are averaged no more
        parallel(x).square().sum().backward()
        if rank == 0:
            torch.save({n: p.grad for n, p in network.named_parameters() if p.grad is not None}, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@every_method
def test_torch_compile(name: str) -> None:
    """Traced, forward and backward; of the ways to a gradient one each is compiled too."""
    backend = "inductor" if name in ("low_rank", "dora", "branch", "sparse_mask") else "aot_eager"
    conv = nn.Conv2d(6, 16, 3, stride=2, padding=1, groups=1 if backend == "inductor" else 2)
    check_compiled(nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU()).eval(), METHODS[name], backend)


def check_compiled(network: nn.Module, settings: DeltaSettings, backend: str) -> None:
    x = torch.randn(2, 6, 9, 9)
    torch.compiler.reset()
    attach(network, [settings])
    network.eval()
    disturb(network)
    network(x).square().mean().backward()
    expected = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    assert expected
    network.zero_grad()
    torch.compile(network, backend=backend)(x).square().mean().backward()
    for n, p in network.named_parameters():
        if n in expected:
            assert p.grad is not None and relative(p.grad, expected[n]) < 1e-3, n


@every_method
def test_a_layer_that_cannot_carry_it_is_named(name: str) -> None:
    settings = METHODS[name].model_copy(update={"sites": ("blocks.9",)})
    with pytest.raises(DeltaError, match=rf"{name}: pattern 'blocks.9' matches no layer"):
        attach(build("test_efficientnet"), [settings], "classifier")
    assert issubclass(LayerRefused, DeltaError)
