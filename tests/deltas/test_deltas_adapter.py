"""Adapters and the output delta: against their equations, and where they sit."""

import pytest
import torch
from deltas_models import build, images
from pydantic import ValidationError
from torch.nn import functional as F

from distill.deltas.adapter import Adapter, Bottleneck
from distill.deltas.attach import attach
from distill.deltas.blocks import BackboneBlock
from distill.deltas.output import OutputDelta


def randomized(settings: Adapter.Settings, place: BackboneBlock) -> Bottleneck:
    torch.manual_seed(0)
    adapter = Bottleneck(settings, place).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += torch.randn_like(parameter)
    return adapter


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])
def test_tokens(act: str) -> None:
    adapter = randomized(Adapter.Settings(hidden=3, act=act), BackboneBlock("b", (4, 5), -1))
    y = torch.randn(2, 4, 5, dtype=torch.float64)
    inner = getattr(F, act)(y @ adapter.down.weight.T + adapter.down.bias)
    expected = y + adapter.scale * (inner @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(adapter(y), expected)


@torch.no_grad()
def test_maps() -> None:
    adapter = randomized(Adapter.Settings(hidden=2, act="relu"), BackboneBlock("b", (3, 4, 4), 1))
    y = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    down = torch.einsum("hc,bcij->bhij", adapter.down.weight[:, :, 0, 0], y) + adapter.down.bias.view(-1, 1, 1)
    padded = F.pad(down, (1, 1, 1, 1))
    mixed = torch.zeros_like(down)
    for i in range(4):
        for j in range(4):
            mixed[..., i, j] = (padded[:, :, i : i + 3, j : j + 3] * adapter.mix.weight[:, 0]).sum((2, 3))
    mixed = (mixed + adapter.mix.bias.view(-1, 1, 1)).clamp(min=0)
    up = torch.einsum("ch,bhij->bcij", adapter.up.weight[:, :, 0, 0], mixed) + adapter.up.bias.view(-1, 1, 1)
    torch.testing.assert_close(adapter(y), y + adapter.scale.view(-1, 1, 1) * up)


def test_where_they_sit() -> None:
    """Behind LayerScale in a ViT, on the attention and the MLP of a block without it, on the stages of a CNN."""
    actual = {}
    for model, sites in (("test_vit", "blocks.1"), ("test_resnet", "*"), ("test_resnet", "layer2.*")):
        network = build(model)
        (site,) = attach(network, [Adapter.Settings(sites=sites)])
        actual[model, sites] = site.delta.names
        assert (site.delta.adapters[0].scale is None) == (not Adapter.Settings().scale)
    assert actual == {
        ("test_vit", "blocks.1"): ["blocks.1.ls1", "blocks.1.ls2"],
        ("test_resnet", "*"): ["layer1", "layer2", "layer3", "layer4"],
        ("test_resnet", "layer2.*"): ["layer2.0"],
    }
    with pytest.raises(ValidationError, match="must be odd, is 4"):
        Adapter.Settings(kernel=4)


def test_the_output_delta_is_its_equation() -> None:
    network = build("test_resnet")
    x = images(2, 64)
    with torch.no_grad():
        f = network.forward_head(network.forward_features(x), pre_logits=True)
        z = network.fc(f)
        (site,) = attach(network, [OutputDelta.Settings(hidden=3)], "fc")
        correction = site.delta.corrections[0]
        correction.gain.fill_(0.5)
        hidden = F.gelu(f @ correction.into.weight.T + correction.into.bias)
        torch.testing.assert_close(network(x), z + 0.5 * (hidden @ correction.out.weight.T + correction.out.bias))
        assert site.delta.metrics() == {"gain": torch.tensor(0.5)}


def test_an_output_delta_for_each_of_two_classifiers() -> None:
    network = build("deit_tiny_distilled_patch16_224", depth=1)
    (site,) = attach(network, [OutputDelta.Settings()], ("head", "head_dist"))
    assert site.delta.names == ("head", "head_dist") and len(site.delta.corrections) == 2
