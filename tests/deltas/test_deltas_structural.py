"""The contract of structural deltas, on every one of them and on a CNN and a ViT."""

import copy
from typing import Any

import pytest
import timm
import torch
from deltas_models import build, disturb, images, relative
from structural_deltas import METHODS, VARIANTS, every_method, view, with_delta
from torch import nn

from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state

MODELS = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"]


every_variant = pytest.mark.parametrize("name", VARIANTS)


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
