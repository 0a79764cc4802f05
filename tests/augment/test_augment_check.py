"""``augment check`` finds every requirement that is not met, and passes operations of every shape; the command line."""

import json
import random

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from augment import __main__ as command
from augment.check import examine
from augment.recipe import build, built

SIZE = (24, 24)
HERE = __name__


class Tint:
    """Adds a color to each image."""

    def __init__(self, strength: float = 0.3):
        self.strength = strength

    def sample(self, draws, shape):
        return {"by": draws.uniform(0, (shape[1], 1, 1))}

    def color(self, images, params):
        return images * (1 - self.strength * params["by"])


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.full((3, 1, 1), 0.5))

    def forward(self, images):
        return images * self.weight


class Unregistered(Buffered):
    def __init__(self):
        super().__init__()
        del self.weight
        self.weight = torch.full((3, 1, 1), 0.5)


class Base:
    def sample(self, draws, shape):
        return draws.uniform(0, (1, 1, 1))

    def apply(self, images, params):
        return images * params


class Global(Base):
    def sample(self, draws, shape):
        return torch.rand(shape[0], 1, 1, 1)


class Pythons(Base):
    def sample(self, draws, shape):
        return random.random()


class OneForAll(Base):
    def sample(self, draws, shape):
        return draws.shared().uniform(0, (1, 1, 1))


class Neighbors(Base):
    def apply(self, images, params):
        return images - images.mean()


class InPlace(Base):
    def apply(self, images, params):
        return images.mul_(params)


class Nan(Base):
    def apply(self, images, params):
        return images / 0 * 0


class Half(Base):
    def apply(self, images, params):
        return images.half()


class Flat(Base):
    def apply(self, images, params):
        return images.flatten(1)


class Loud(Base):
    def apply(self, images, params):
        return images * 3 - 1


class Small(Base):
    def apply(self, images, params):
        return images[..., 4:]


class OnHost(Base):
    def apply(self, images, params):
        return images if float(params.max()) > 0 else images * 0


class LeftBehind(Base):
    def apply(self, images, params):
        return images * torch.linspace(0, 1, 3).view(3, 1, 1).repeat(len(images), 1, 1, 1)


class Raises(Base):
    def apply(self, images, params):
        raise KeyError("gain")


def results_by_check(item):
    return {result.check: result for result in examine(built(item, SIZE), SIZE, batch=2)}


@pytest.mark.parametrize("item", [Tint(), Buffered(), Base(), v2.RandomHorizontalFlip(), "RandomGrayscale"])
def test_every_shape_of_a_sound_operation_passes(item):
    operation = build(item, {}, SIZE) if isinstance(item, str) else built(item, SIZE)
    actual = examine(operation, SIZE, batch=2)
    assert not [result for result in actual if result.verdict == "fail"]
    assert {"deterministic", "batch-invariant", "device", "compiles", "cost"} <= {result.check for result in actual}


@pytest.mark.parametrize(
    "item, check, verdict, why",
    [
        (Global(), "deterministic", "fail", "moves torch's global generator"),
        (Pythons(), "deterministic", "fail", "the same samples and draws give another result"),
        (OneForAll(), "one draw per sample", "fail", "one draw for all samples of an epoch"),
        (Buffered(), "one draw per sample", "note", "draws nothing: 64 ids"),
        (Neighbors(), "batch-invariant", "fail", "differs by"),
        (InPlace(), "leaves its input alone", "fail", "changes its input in place"),
        (Nan(), "range", "fail", "NaN or infinite values, first in sample 0"),
        (Loud(), "range", "note", "which a chain clamps"),
        (Half(), "shape and type", "fail", "expected torch.float32, found torch.float16"),
        (Flat(), "shape and type", "fail", "expected [7, 3, H, W] of images [7, 3, 24, 24], found [7, 1728]"),
        (Small(), "shape and type", "note", "changes the size: 24×24 → 24×20"),
        (Raises(), "range", "fail", "KeyError: 'gain'"),
        (Base(), "kind", "ok", "sampled"),
        (Tint(), "kind", "ok", "declarative: color"),
        (Base(), "compiles", "ok", "in one graph"),
        (OnHost(), "compiles", "note", "breaks the graph"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_the_verdict_and_its_reason(item, check, verdict, why):
    actual = results_by_check(item)[check]
    assert (actual.verdict, why in actual.why) == (verdict, True), actual


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is traced")
@pytest.mark.parametrize(
    "item, verdict, why",
    [
        (Buffered(), "ok", "nothing stays on the CPU"),
        (Base(), "ok", "nothing stays on the CPU"),
        (Unregistered(), "fail", "at least two devices"),
        (LeftBehind(), "fail", "at least two devices"),
        (OnHost(), "note", "reads values on the host"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_a_missing_gpu_is_traced(item, verdict, why):
    actual = results_by_check(item)["device"]
    assert (actual.verdict, why in actual.why) == (verdict, True), actual


def test_the_command(capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["check", f"{HERE}:Tint", "strength=0.5", "--size", "24", "--batch", "2"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "deterministic" in shown and "images/s" in shown
    with pytest.raises(SystemExit) as left:
        command.main(["check", f"{HERE}:Global", "--size", "24", "--batch", "2"])
    assert left.value.code == 1 and "fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([f"{HERE}:Tnt"], "did you mean 'Tint'?"),
        ([f"{HERE}:Tint", "strenght=1"], "Tint has no argument 'strenght'; did you mean 'strength'?"),
        (["RandomHorizontalFlp"], "did you mean 'RandomHorizontalFlip'?"),
        ([f"{HERE}:Tint", "strength"], "write argument=value"),
    ],
)
def test_the_command_names_a_mistake(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["check", *arguments])
    assert left.value.code == 2 and message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_values_are_json_or_words():
    given = {"a=1e-3": 1e-3, "b=[0.3, 1]": [0.3, 1], "c=reflect": "reflect", "d=true": True, "e=null": None}
    assert [command._argument(text)[1] for text in given] == list(given.values())
    assert json.dumps(command._argument('f="1"')[1]) == '"1"'


def test_the_list(capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["list"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and all(name in shown for name in ("RandomGrayscale", "PadCrop", "simclr"))
    with pytest.raises(SystemExit):
        command.main(["list", "Horizontal"])
    shown = capsys.readouterr().out
    assert "RandomHorizontalFlip" in shown and "RandomGrayscale" not in shown
