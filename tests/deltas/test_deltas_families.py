"""Every weight delta on twelve families of timm networks, small and of random weights."""

import copy
from typing import Any

import pytest
import torch
from deltas_models import build, disturb, images, relative, weight_deltas
from torch import nn

from distill.deltas.attach import attach, deltas, merge
from distill.deltas.base import DeltaError
from distill.deltas.sites import classifier_names

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnext26ts": {},
    "mobilenetv3_small_050": {},
    "tf_efficientnet_lite0": {},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "test_nfnet": {},
    "regnetx_002": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2)},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
    "efficientformerv2_s0": {"img_size": 64, "depths": (1, 1, 2, 2), "num_vit": 1},
}
METHODS = weight_deltas()
REFUSALS = ("cannot be centered", "matches no norm layer", "no conv or depthwise layer")
"""What a method may say of a network that has no layer for it."""


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    arguments = FAMILIES[request.param]
    model = build(request.param, **arguments).to(memory_format=torch.channels_last)
    x = images(2, arguments.get("img_size", 64))
    with torch.no_grad():
        return model, x, model(x)


@pytest.mark.parametrize("name", METHODS)
def test_identity_and_merge(plain: tuple[nn.Module, torch.Tensor, torch.Tensor], name: str) -> None:
    original, x, before = plain
    model = copy.deepcopy(original)
    try:
        attach(model, [METHODS[name]], classifier_names(model))
    except DeltaError as error:
        assert any(words in str(error) for words in REFUSALS), error
        return
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), before), "not the identity at step 0"
        disturb(model)
        unmerged = model(x)
        assert relative(unmerged, before) > 1e-4
        merge(model)
        merged = model(x)
    assert not deltas(model)
    assert relative(merged, unmerged) <= 1e-5 and torch.equal(merged.argmax(1), unmerged.argmax(1))
