"""What networks share: computed once, the same to the last bit, and never where something differs."""

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn

from distill.models.module_equality import equal_parts
from distill.models.network import extract
from distill.models.shared_trunk import SharedTrunk, _KeptOutput

LOGITS, MAPS = frozenset({"logits"}), frozenset({"logits", "pooled", "maps"})
LAYERS = (nn.Conv2d, nn.Linear)


class Layer(nn.Linear):
    """Says whenever it is computed."""

    computed: ClassVar[list["Layer"]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.computed.append(self)
        return super().forward(x)


class Net(nn.Module):
    """stem → ReLU in place → body → head, and the stem's output once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.body, self.head = Layer(4, 4), nn.ReLU(inplace=True), Layer(4, 4), Layer(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        y = self.act(early)
        return self.head(self.body(y) + early)


def pair() -> tuple[Net, Net]:
    """Two networks that differ in their heads."""
    torch.manual_seed(0)
    teacher = Net().eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    student.head.requires_grad_(True)
    nn.init.normal_(student.head.weight)
    return teacher, student


def plain(module: nn.Module) -> Any:
    """Frozen, in eval mode."""
    return module.eval().requires_grad_(False)


def run_all(*networks: nn.Module, x: Tensor | None = None) -> list[Tensor]:
    x = images() if x is None else x
    with torch.no_grad():
        seen = [network(x) for network in networks[:-1]]
    return [*seen, networks[-1](x)]


def tried(*networks: nn.Module) -> SharedTrunk:
    trunk = SharedTrunk(networks)
    trunk.try_out(lambda: run_all(*networks))
    return trunk


def images() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def assert_as_alone(trunk: SharedTrunk, *networks: nn.Module) -> list[Any]:
    """Outputs and gradients with the trunk are those without it; returns the layers that were computed with it."""
    expected = run_all(*networks)
    with trunk:
        Layer.computed.clear()
        actual = run_all(*networks)
        computed = list(Layer.computed)
    for own, reference in zip(actual, expected, strict=True):
        assert torch.equal(own, reference)
    student = [p for p in networks[-1].parameters() if p.requires_grad]
    pairs = zip(*(torch.autograd.grad(outputs[-1].square().sum(), student) for outputs in (actual, expected)))
    assert all(torch.equal(own, reference) for own, reference in pairs)
    return computed


def test_by_hand() -> None:
    teacher, student = pair()
    trunk = tried(teacher, student)
    # ReLU has written into the stem's output: stem and ReLU are computed, and the body is known by what they are.
    assert trunk.taken(1) == [student.body] and trunk.taken(0) == []
    computed = assert_as_alone(trunk, teacher, student)
    assert computed == [teacher.stem, teacher.body, teacher.head, student.stem, student.head]
    teacher.act, student.act = plain(nn.ReLU()), plain(nn.ReLU())
    trunk = tried(teacher, student)
    assert {*trunk.taken(1)} == {student.stem, student.act, student.body}
    assert assert_as_alone(trunk, teacher, student) == [teacher.stem, teacher.body, teacher.head, student.head]
    student.act = teacher.act
    assert tried(teacher, student).taken(1) == [student.stem], "one module in both networks is nobody's copy"


def test_whichever_looks_first_and_however_many() -> None:
    teacher, student = pair()
    other = copy.deepcopy(teacher)
    nn.init.normal_(other.body.weight)
    for network in (teacher, other, student):
        network.act = plain(nn.ReLU())
    trunk = tried(teacher, other, student)
    assert {*trunk.taken(1)} == {other.stem, other.act}
    assert {*trunk.taken(2)} == {student.stem, student.act, student.body}
    computed = assert_as_alone(trunk, teacher, other, student)
    assert computed == [teacher.stem, teacher.body, teacher.head, other.body, other.head, student.head]
    with trunk:
        Layer.computed.clear()
        run_all(student, teacher)
        assert Layer.computed == [student.stem, student.body, student.head, teacher.stem, teacher.body, teacher.head]


def test_outside_of_it_networks_are_their_own_and_nothing_is_kept() -> None:
    teacher, student = pair()
    trunk = tried(teacher, student)
    seen: list[weakref.ref[Tensor]] = []
    student.body.register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    with trunk:
        assert "forward" in vars(student.body)
        run_all(teacher, student)
    with pytest.raises(ValueError, match="stop"), trunk:
        raise ValueError("stop")
    gc.collect()
    assert seen and seen[0]() is None
    assert not any("forward" in vars(module) for net in (teacher, student) for module in net.modules())
    Layer.computed.clear()
    run_all(teacher, student)
    assert len(Layer.computed) == 6


def test_another_tensor_of_the_same_values_is_computed() -> None:
    teacher, student = pair()
    with tried(teacher, student):
        Layer.computed.clear()
        teacher(images())
        student(images())
    assert student.body in Layer.computed
    x = images()
    with tried(teacher, student):
        teacher(x)
        Layer.computed.clear()
        expected = student(x.add_(1)).detach().clone()
        assert student.stem in Layer.computed and student.body in Layer.computed, "the view was written to"
    assert torch.equal(expected, student(x))


def test_each_view_has_its_own_trunk() -> None:
    teacher, student = pair()
    first, second = images(), images() + 1
    expected = [student(view) for view in (second, first)]
    with tried(teacher, student):
        teacher(first), teacher(second)
        Layer.computed.clear()
        actual = [student(view) for view in (second, first)]
    assert student.body not in Layer.computed
    assert all(map(torch.equal, actual, expected))


# --- What is not the same -----------------------------------------------------------------------------------------


def unequal_weight(net: Net) -> None:
    with torch.no_grad():
        net.stem.weight[0, 0] = torch.nextafter(net.stem.weight[0, 0], torch.tensor(9.0))


def negative_zero(net: Net) -> None:
    net.stem.bias.data[0] *= -1


CHANGES = {
    "one bit of the stem": unequal_weight,
    "the sign of a zero": negative_zero,
    "a trained stem": lambda net: net.stem.requires_grad_(True),
    "another precision": lambda net: setattr(net, "stem", net.stem.double().float().to(torch.bfloat16)),
    "another class": lambda net: setattr(net.stem, "__class__", nn.Linear),
    "another setting": lambda net: setattr(net.stem, "scale", 2.0),
    "a layer more": lambda net: net.stem.add_module("more", nn.Identity()),
    "a forward of its own": lambda net: setattr(net.stem, "forward", lambda x: nn.Linear.forward(net.stem, x)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stem_that_differs_ends_it(change: str) -> None:
    teacher, student = pair()
    nn.init.zeros_(teacher.stem.bias), nn.init.zeros_(student.stem.bias)
    assert tried(teacher, student).taken(1)
    CHANGES[change](student)
    names = {part.name for part, _ in equal_parts(teacher, student)}
    assert names == {"act", "body"}
    if student.stem.weight.dtype == torch.float32:
        assert not tried(teacher, student).taken(1)


def test_training_mode_ends_it() -> None:
    teacher, student = (plain(net) for net in pair())
    nn.init.zeros_(student.head.weight)
    for network in (teacher, student):
        network.stem, network.act = plain(nn.Sequential(nn.BatchNorm1d(4))), plain(nn.ReLU())
    student.stem[0].train()
    assert not tried(teacher, student).taken(1)
    student.stem[0].eval().load_state_dict(teacher.stem[0].state_dict())
    trunk = tried(teacher, student)
    assert {*trunk.taken(1)} == {student.stem[0], student.act, student.body}
    student.stem[0].train()
    Layer.computed.clear()
    with trunk:
        run_all(teacher, student)
    assert student.body in Layer.computed and student.stem[0].num_batches_tracked == 1


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Doubled(nn.Module):
    """Writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def test_what_is_random_even_in_eval_mode_is_computed_by_each() -> None:
    teacher, student = pair()
    teacher.act, student.act = plain(Noise()), plain(Noise())
    trunk = tried(teacher, student)
    assert trunk.taken(1) == [student.stem]
    with trunk:
        Layer.computed.clear()
        run_all(teacher, student)
    assert student.body in Layer.computed


def test_who_writes_into_a_tensor_gets_its_own() -> None:
    teacher, student = pair()
    teacher.act, student.act = plain(nn.Identity()), plain(Doubled())
    seen = []
    teacher.stem.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    trunk = tried(teacher, student)
    assert trunk.taken(1) == []
    assert_as_alone(trunk, teacher, student)
    assert torch.equal(*seen[-1]), "the student has written into the teacher's features"


def test_autocast_and_gradients_to_the_input_end_it() -> None:
    teacher, student = pair()
    trunk = tried(teacher, student)
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        expected = student(x)
    with trunk:
        teacher(x)
        with torch.autocast("cpu", torch.bfloat16):
            actual = student(x)
    assert actual.dtype == torch.bfloat16 and torch.equal(actual, expected)
    x.requires_grad_()
    with trunk:
        run_all(teacher, student, x=x)[-1].sum().backward()
    assert x.grad is not None and x.grad.any()


def test_weights_that_are_written_to_end_it(caplog: pytest.LogCaptureFixture) -> None:
    teacher, student = pair()
    trunk = tried(teacher, student)
    with torch.no_grad():
        student.stem.weight.mul_(2)
    assert len(assert_as_alone(trunk, teacher, student)) == 6
    assert "have been written to" in caplog.text


def test_hooks_are_called() -> None:
    whole = pair()[0]
    networks = [plain(nn.Sequential(copy.deepcopy(whole))) for _ in range(2)]
    student, called = networks[1][0], []
    trunk = tried(*networks)
    assert trunk.taken(1) == [student]
    student.register_forward_hook(lambda *unused: called.append("outer"))
    with trunk:
        run_all(*networks)
    assert called == ["outer"]
    student.body.register_forward_hook(lambda *unused: called.append("inner"))
    trunk = tried(*networks)
    assert student.body in trunk.taken(1), "a module with a hook in it is taken apart"
    called.clear()
    with trunk:
        run_all(*networks)
    assert called == ["inner", "outer"]


def test_lists_are_not_looked_into_and_tuples_are_shared() -> None:
    class Two(nn.Module):
        def __init__(self, kind: type) -> None:
            super().__init__()
            self.split, self.join, self.kind = Split(kind), Join(), kind

        def forward(self, x: Tensor) -> Tensor:
            return self.join(*self.split(x)) if self.kind is tuple else self.join(self.split(x))

    class Split(nn.Linear):
        def __init__(self, kind: type) -> None:
            super().__init__(4, 4)
            self.kind = kind

        def forward(self, x: Tensor) -> Any:
            return self.kind((super().forward(x), None))

    class Join(nn.Module):
        def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
            return (x if isinstance(x, Tensor) else x[0]) * 2

    for kind, shared in ((tuple, 2), (list, 0)):
        networks = [plain(Two(kind))]
        networks.append(copy.deepcopy(networks[0]))
        networks[0].own, networks[1].own = 1, 2
        trunk = tried(*networks)
        assert len(trunk.taken(1)) == shared
        with trunk:
            assert torch.equal(*run_all(*networks))


# --- timm's networks ----------------------------------------------------------------------------------------------

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


# --- Streams ------------------------------------------------------------------------------------------------------


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
