"""The frozen layers that networks share are computed once, with the same outputs."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trunk_networks import Layer, assert_as_alone, images, pair, plain, run_all, tried


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
