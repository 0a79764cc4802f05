"""Structural deltas under torch.compile."""

import pytest
import torch
from deltas_models import disturb, relative
from structural_deltas import METHODS, every_method, view, with_delta

from distill.models.network import extract

LOGITS_ALONE = ("test_resnet", "output")


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
@pytest.mark.parametrize(
    ("model", "name"),  # a delta of the logits alone sees no backbone
    [(model, name) for model in ("test_vit", "test_resnet") for name in METHODS if (model, name) != LOGITS_ALONE],
)
def test_a_whole_network_is_one_graph(model: str, name: str) -> None:
    """What the student compiles, without a graph break."""
    torch.compiler.reset()
    network = with_delta(model, name, **({"depth": 2} if "vit" in model else {}))
    x, needs = view(model), frozenset({"logits", "maps"})
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
