"""The shared part of timm's networks, and of networks on a GPU."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from trunk_networks import run_all

from distill.models.network import extract
from distill.models.shared_trunk import SharedTrunk, _KeptOutput

LOGITS, MAPS = frozenset({"logits"}), frozenset({"logits", "pooled", "maps"})


LAYERS = (nn.Conv2d, nn.Linear)
MODELS = {  # the part that differs → what comes after it, and is still of the trunk
    "test_resnet": ("layer4.0.conv2", {"layer4.0.downsample.0", "layer4.0.downsample.1"}),
    "test_efficientnet": ("blocks.3.0.conv_pw", set()),
    "test_vit": ("blocks.4.mlp.fc1", set()),
}


@pytest.mark.parametrize("needs", [LOGITS, MAPS], ids=["logits", "maps"])
@pytest.mark.parametrize("name", MODELS)
def test_of_timm(name: str, needs: frozenset[str]) -> None:
    torch.manual_seed(0)
    teacher = timm.create_model(name, num_classes=5).eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    site, beside = MODELS[name]
    student.get_submodule(site).requires_grad_(True)
    x = torch.randn(2, 3, 160, 160)
    expected = extract(student, x, needs)
    trunk = SharedTrunk([teacher, student])

    def step() -> Any:
        with torch.no_grad():
            extract(teacher, x, MAPS)  # it may be asked for more than the student
        return extract(student, x, needs)

    trunk.try_out(step)
    layers = {part: layer for part, layer in student.named_modules() if isinstance(layer, LAYERS)}
    taken = {layer for module in trunk.taken(1) for layer in module.modules() if isinstance(layer, LAYERS)}
    before = list(layers)[: list(layers).index(site)]
    assert taken == {layers[part] for part in layers if part in before or part in beside}
    computed = []
    for layer in taken:
        layer.register_forward_hook(lambda module, *unused: computed.append(module))
    with trunk:
        actual = step()
    parents = {module for module in trunk.taken(1) if isinstance(module, LAYERS)}
    assert set(computed) <= parents, "hooks of what is taken are called, but nothing inside it is computed"
    assert [*map(torch.equal, actual.tensors(), expected.tensors())] == [True] * len(actual.tensors())
    weight: Any = student.get_submodule(site).weight
    own, reference = (torch.autograd.grad(f.tensors()[0].sum(), weight)[0] for f in (actual, expected))
    assert torch.equal(own, reference)


POSITIONS: dict[str, Callable[[Any], Any]] = {
    "another embedding": lambda vit: vit.pos_embed.data.add_(1),
    "another class token": lambda vit: vit.cls_token.data.add_(1),
    "another layer in it": lambda vit: setattr(vit, "pos_drop", nn.Dropout(0.5).eval()),
    "a hook in it": lambda vit: vit.pos_drop.register_forward_hook(lambda module, inputs, output: output + 1),
    "a method of its own": lambda vit: setattr(vit, "_pos_embed", partial(type(vit)._pos_embed, vit)),
}


@pytest.mark.parametrize("change", POSITIONS)
def test_a_position_embedding_that_differs_ends_it(change: str) -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("test_vit").eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    POSITIONS[change](student)
    trunk = SharedTrunk([teacher, student])
    trunk.try_out(partial(run_all, teacher, student, x=torch.randn(2, 3, 160, 160)))
    assert trunk.taken(1) == [student.patch_embed]


def test_on_a_gpu_who_takes_waits_for_who_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def record_event(self) -> str:
            notes.append(f"{self.name} has got so far")
            return f"event of {self.name}"

        def wait_event(self, event: str) -> None:
            notes.append(f"{self.name} waits for {event}")

    class OnCuda(Tensor):
        is_cuda = True  # type: ignore[assignment]

        def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
            notes.append(f"used on {stream.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("side"))
    kept = _KeptOutput(torch.ones(2).as_subclass(OnCuda), limit=1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    assert kept.take() is kept.output and kept.uses == 1
    assert notes == ["side has got so far", "main waits for event of side", "used on main"]
