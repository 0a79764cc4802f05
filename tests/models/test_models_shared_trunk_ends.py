"""What ends the shared part of networks: other weights, modes, randomness, writes, gradients."""

import pytest
import torch
from torch import Tensor, nn
from trunk_networks import Layer, Net, assert_as_alone, images, pair, plain, run_all, tried

from distill.models.module_equality import equal_parts


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
