"""The ladder: climbing against its equation, pruning by hand, no gradient and no activations in the backbone, cache."""

import copy
import re
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm
import torch
from deltas_models import build, disturb, images, relative
from torch import nn
from torch.nn import functional as F

from distill.deltas.attach import attach
from distill.deltas.base import DeltaError, Gradients
from distill.deltas.blocks import BackboneBlock
from distill.deltas.deep_delta import DeepDelta
from distill.deltas.dense import Dense
from distill.deltas.feature_cache import FeatureCache, digests
from distill.deltas.ladder import Ladder
from distill.deltas.side_blocks import Rung, SideConvs, pruned_form
from distill.deltas.sites import classifier_names
from distill.deltas.structured_pruning import prune_into, top


def climbing(model: str, **settings: object) -> tuple[nn.Module, Ladder]:
    network = build(model)
    torch.manual_seed(3)
    (site,) = attach(network, [Ladder.Settings(**settings)], classifier_names(network))
    network.eval()
    assert isinstance(site.delta, Ladder)
    return network, site.delta


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_it_climbs_by_its_equation(model: str) -> None:
    network, ladder = climbing(model)
    disturb(network)
    x, taps = images(2), {}
    for name in ladder.names:
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: taps.update({name: o}))
    with torch.no_grad():
        plain = build(model)
        final = plain.forward_features(x)
        got = network.forward_features(x)
        s = None
        for name, rung in zip(ladder.names, ladder.rungs, strict=True):
            d = rung.down(taps[name])
            if s is None:
                mixed = d
            else:
                s = rung.across(s)
                if s.ndim == 4:
                    s = F.adaptive_avg_pool2d(s, d.shape[-2:])
                g = 1 / (1 + torch.exp(-rung.gate / 0.1))
                mixed = g * s + (1 - g) * d
            s = mixed + rung.block(mixed)
        torch.testing.assert_close(got, final + ladder.up(ladder.norm(s)))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_with_the_stem_the_stream_starts_before_the_first_block(model: str) -> None:
    network, ladder = climbing(model, stem=True, init="random")
    assert ladder.start is not None and ladder.rungs[0].gate is not None
    x, kept = images(2), {}
    with torch.no_grad():
        assert torch.equal(network(x), build(model)(x)), "the identity before training"
        disturb(network)
        first = network.get_submodule("blocks.0" if model == "test_vit" else "layer1.0")
        first.register_forward_pre_hook(lambda m, inputs: kept.update(stem=inputs[0]))
        network.get_submodule(ladder.names[0]).register_forward_hook(lambda m, i, o: kept.update(tap=o))
        rung, made = ladder.rungs[0], {}
        rung.block.register_forward_pre_hook(lambda m, inputs: made.update(mixed=inputs[0]))
        network(x)
        s, d = ladder.start.down(kept["stem"]), rung.down(kept["tap"])
        if s.ndim == 4:
            s = F.adaptive_avg_pool2d(s, d.shape[-2:])
        g = torch.sigmoid(rung.gate / 0.1)
        torch.testing.assert_close(made["mixed"], g * s + (1 - g) * d)
    network(x).sum().backward()
    assert ladder.start.down.weight.grad is not None and first.state_dict() is not None
    assert not any(p.grad is not None for p in first.parameters())


def test_a_pruned_stem_of_equal_width_keeps_the_streams_channels() -> None:
    _, ladder = climbing("test_vit", stem=True)
    assert torch.equal(ladder.start.down.weight, ladder.rungs[0].down.weight)


def test_rungs_are_chosen_freely() -> None:
    _, ladder = climbing("test_vit", rungs=[0, 2], init="random")
    assert ladder.names == ["blocks.0", "blocks.2"]
    _, ladder = climbing("test_vit", rungs=[1], sites=["blocks.[12]"], init="random")
    assert ladder.names == ["blocks.2"], "numbers among the taps that sites match"
    with pytest.raises(DeltaError, match=r"rungs: 3: its sites match 3 taps, numbers 0 to 2: blocks\.0, blocks\.1"):
        climbing("test_vit", rungs=[0, 3])
    for wrong, text in (({"rungs": [1], "every": 2}, "every chooses the rungs too"), ({"rungs": [2, 0]}, "ascending")):
        with pytest.raises(ValueError, match=text):
            Ladder.Settings(**wrong)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_trunk_in_bfloat16_computes_what_the_backbone_does_in_bfloat16(model: str) -> None:
    network, ladder = climbing(model, trunk="bfloat16", stem=True, init="random")
    before = {name: tensor.clone() for name, tensor in build(model).state_dict().items()}
    x, dtypes = images(2), set()
    layer = next(m for m in network.get_submodule(ladder.names[-1]).modules() if isinstance(m, nn.Linear | nn.Conv2d))
    layer.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    ladder.rungs[-1].down.register_forward_pre_hook(lambda m, i: dtypes.add(("side", i[0].dtype)))
    with torch.no_grad():
        plain = build(model)
        with torch.autocast("cpu", torch.bfloat16):
            final = plain.forward_features(x)
        assert torch.equal(network.forward_features(x), final.float()), "the identity, bit by bit"
        assert network(x).dtype == torch.float32 and relative(network(x), plain(x)) < 0.1
        last, maps = network.forward_intermediates(x)
        assert last.dtype == torch.float32 and all(map_.dtype == torch.float32 for map_ in maps)
    assert dtypes == {torch.bfloat16, ("side", torch.float32)}
    network(x).sum().backward()
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items()), "weights stay fp32"


def saved_bytes(network: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps for the backward pass, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x).sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize(("model", "share"), [("resnet18", 0.31), ("vit_tiny_patch16_224", 0.31)])
def test_the_backbone_keeps_no_activations(model: str, share: float) -> None:
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=5, **({"depth": 6} if "vit" in model else {})).eval()
    x = images(2, 224)
    full = saved_bytes(network, x)
    network.zero_grad()
    attach(network, [Ladder.Settings()], classifier_names(network))
    assert saved_bytes(network, x) <= share * full
    assert not any(p.grad is not None for n, p in network.named_parameters() if n.startswith(("layer", "blocks")))


def test_pruning_keeps_what_matters() -> None:
    assert top(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist() == [1, 2]
    network = build("test_resnet")
    ladder = Ladder(Ladder.Settings(reduction=8, sites="layer1"), network)
    block, rung = network.layer1[0], ladder.rungs[0]
    importance = {n: torch.zeros_like(m.weight) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    importance["layer1.0.conv1"][[7, 2, 30]] = 1.0  # channels between the convs
    importance["layer1.0.conv2"][[5, 9], :, 1, 1] = 1.0  # channels of the stream
    importance["layer1.0.conv1"][:, [1, 20]] += 2.0
    ladder.prune(network, importance.__getitem__)
    assert rung.form.width == 4
    stream = rung.down.weight.flatten(1).argmax(1)
    assert rung.down.weight.sum() == 4 and set(stream.tolist()) >= {1, 20}
    between = [2, 7, 30]  # and the first of those that are all alike
    assert torch.equal(rung.block.convs[0].weight, block.conv1.weight[[0, *between]][:, stream])
    assert torch.equal(rung.block.convs[1].weight, block.conv2.weight[stream][:, [0, *between]])


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_block_that_reads_fewer_channels_than_its_copy(depthwise: bool) -> None:
    """4 channels become 16, and the copy has 8 at both ends: what reads the other 4 is zero, and learns."""
    torch.manual_seed(0)
    first = nn.Conv2d(4, 4, 3, padding=1, groups=4) if depthwise else nn.Conv2d(4, 6, 3, padding=1)
    backbone = nn.Sequential(OrderedDict(block=nn.Sequential(first, nn.Conv2d(first.out_channels, 16, 1))))
    tap = BackboneBlock("block", (16, 5, 5), 1)
    rung = Rung(tap, pruned_form(backbone, tap, 2), None, 0.0)
    assert isinstance(rung.block, SideConvs) and rung.form.width == rung.block.convs[0].in_channels == 8
    before = rung.block.convs[0].weight.clone()
    importance = {f"block.{n}": layer.weight.square() for n, layer in enumerate(backbone.block)}
    stream = torch.tensor([0, 1, 2, 5, 8, 9, 12, 15])
    prune_into(rung, backbone, importance.__getitem__, stream)
    thin, last = (conv.weight for conv in rung.block.convs)
    if depthwise:
        assert torch.equal(thin[:4], first.weight) and torch.equal(thin[4:], before[4:])
        part, reading = last, backbone.block[1].weight[stream]
    else:
        between = top(first.weight.square().flatten(1).sum(1) + backbone.block[1].weight.square().sum((0, 2, 3)), 3)
        assert torch.equal(last, backbone.block[1].weight[stream][:, between])
        part, reading = thin, first.weight[between]
    assert torch.equal(part[:, :4], reading) and not part[:, 4:].any()
    rung.keep(rung, (), torch.randn(2, 16, 5, 5))
    rung(None).square().sum().backward()
    assert part.grad is not None and part.grad[:, 4:].flatten(2).any(2).all()


@pytest.mark.parametrize("reduction", [2, 3])
def test_a_stage_that_gets_wider_than_the_reduction(reduction: int) -> None:
    """The third stage of ``test_resnet`` is one block from 48 to 192 channels; its copy reads 96, or 64."""
    network, ladder = climbing("test_resnet", reduction=reduction)
    assert [rung.form.width for rung in ladder.rungs][2] == 192 // reduction > 48
    with torch.no_grad():
        assert torch.equal(network(images(2)), build("test_resnet")(images(2)))
        disturb(network)
        assert network(images(2)).isfinite().all()


@pytest.mark.slow
def test_every_reduction_is_pruned_or_refused_with_the_layer_named() -> None:
    refused = set()
    for model in timm.list_models("test_*"):
        network = build(model)
        for reduction in (2, 3, 4, 8, 64):
            try:
                Ladder(Ladder.Settings(reduction=reduction), network)
            except DeltaError as error:
                assert re.search(r"no side block can be pruned from '[\w.]+' .*; set init: random", str(error)), error
                refused.add(model)
    assert refused == {"test_mambaout"}


def test_a_transformer_block_is_cut_head_by_head() -> None:
    network = build("test_vit")
    ladder = Ladder(Ladder.Settings(reduction=8), network)
    source, side, heads = network.blocks[0], ladder.rungs[0].block, ladder.rungs[0].form.heads
    assert heads == source.attn.num_heads and side.qkv.weight.shape[0] == 3 * ladder.rungs[0].form.width
    stream = ladder.rungs[0].down.weight.argmax(1)
    assert all(torch.equal(rung.down.weight.argmax(1), stream) for rung in ladder.rungs), "taps of one width share it"
    rows = source.attn.qkv.weight[:, stream]
    places = [int((rows == row).all(1).nonzero()[0]) for row in side.qkv.weight]
    channels, width = source.attn.proj.weight.shape[0], ladder.rungs[0].form.width
    for number, place in enumerate(places):
        part, head = divmod(number, width)[0], (number % width) // (width // heads)
        assert place // channels == part and (place % channels) // (channels // heads) == head
    queries, keys = places[:width], [place - channels for place in places[width : 2 * width]]
    assert queries == keys, "a query and its key keep the same channels"


def test_preparation_prunes_by_fisher() -> None:
    """What prepares it sees gradients of every conv; a channel that nothing depends on is not kept."""
    network = build("test_resnet")
    settings = Ladder.Settings(reduction=4, samples=7)
    asked = []

    def gradients(samples: int) -> dict[str, Gradients]:
        asked.append(samples)
        convs = {n: m.weight for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
        squares = {n: torch.ones_like(w) for n, w in convs.items()}
        for n in squares:
            if n.startswith("layer4"):
                squares[n][:8] = 0
        return {n: Gradients(torch.zeros_like(s), s, 1.0) for n, s in squares.items()}

    def after(epochs: int, train: str) -> SimpleNamespace:
        assert (epochs, train) == (1, "head")
        return SimpleNamespace(gradients=gradients)

    calibration = SimpleNamespace(backbone=network, after=after)
    assert Ladder.prepares(settings) and not Ladder.prepares(Ladder.Settings(init="random"))
    start = Ladder.prepare(settings, calibration)
    assert asked == [7] and list(start.settings) == [settings] and list(start.tensors) == ["ladder"]
    kept = start.tensors["ladder"]["rungs.3.down.weight"].flatten(1).argmax(1)
    assert kept.min() == 8
    fresh = Ladder(settings, network)
    fresh.load_state_dict(start.tensors["ladder"])


def test_every_and_drop_path() -> None:
    network, ladder = climbing("test_vit", every=2)
    assert ladder.names == ["blocks.0", "blocks.2"]
    network, ladder = climbing("test_vit", drop_path=0.5)
    disturb(network)
    x = images(2)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        torch.manual_seed(0)
        assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_repeated_view_does_not_run_the_backbone(model: str) -> None:
    network, ladder = climbing(model, cache_mb=64)
    disturb(network)
    other = copy.deepcopy(network)
    other.structural_0.cache = FeatureCache(0)
    runs = []
    network.get_submodule(ladder.names[0]).register_forward_hook(lambda m, i, o: runs.append(len(o)))
    x = images(4)
    with torch.no_grad():
        exact = other(x)
        torch.testing.assert_close(network(x), exact)
        torch.testing.assert_close(network(x.flip(0)), exact.flip(0))
        torch.testing.assert_close(network(torch.cat([x[2:], x[:1] + 1]))[:2], exact[2:])
    assert runs == [4, 1] and ladder.cache.hit_rate == 6 / 11
    network(x).sum().backward()
    assert ladder.up.weight.grad is not None and runs == [4, 1]
    assert ladder.metrics()["cached"] > 0.5 and copy.deepcopy(network).structural_0.cache.used == 0


def test_the_cache_is_bounded_and_told_apart_by_every_bit() -> None:
    cache, calls = FeatureCache(3 * 16), []

    def view_spec(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(x))
        return (2 * x,)

    x = torch.arange(20, dtype=torch.float32).view(5, 4)
    assert torch.equal(cache(x, view_spec)[0], 2 * x) and torch.equal(cache(x, view_spec)[0], 2 * x)
    assert calls == [5, 2] and cache.used == 48
    y = x.clone()
    y[0, 0] = torch.nextafter(y[0, 0], torch.tensor(1.0))
    assert len({*digests(x), *digests(y)}) == 6
    with torch.autocast("cpu", torch.bfloat16):
        assert not {*digests(x)} & {*cache._rows}, "what bf16 saw is not what fp32 saw"
    maps = torch.randn(2, 3, 4, 5)
    assert digests(maps) == digests(maps.contiguous(memory_format=torch.channels_last))
    assert digests(maps) != digests(maps.transpose(2, 3))


@pytest.mark.parametrize("other", [Dense.Settings(sites="layer1.0.conv1"), DeepDelta.Settings(), Ladder.Settings()])
def test_no_other_delta_on_a_backbone_without_gradient(other) -> None:
    with pytest.raises(DeltaError, match=r"ladder: no gradient enters the backbone, so .* would get no gradient"):
        attach(build("test_resnet"), [Ladder.Settings(), other], "fc")
    attach(build("test_resnet"), [Ladder.Settings(), Dense.Settings(sites="fc")], "fc")


def test_half_precision_is_close() -> None:
    network, _ = climbing("test_resnet")
    disturb(network)
    x = images(2)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(network(x).float(), exact) < 0.1
