"""Training under rounding: what is rounded, with which gradient and ranges, and that what ships is what was trained."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_accumulate import stopped_in
from torch import Tensor, nn
from toy_training import STEPS, assert_bit_equal, experiment, straight_fit, student_fit

import distill
from distill.config import ConfigError
from distill.deltas.attach import merge
from distill.export.delta.io import read_delta
from distill.export.delta.packing import pack, rounded, unpack
from distill.models.student import Student
from distill.run.context import RunContext
from distill.run.export import export_student
from distill.run.stage import StageError
from distill.training.quantization import Quantization, rounded_activation, rounded_weight
from distill.training.settings import QuantizeSettings
from distill.training.signals import StopSignal

INT8 = {"epochs": 1, "weights": 8, "activations": 8}


def student(deltas: Any = "low_rank", **settings: Any) -> Student:
    torch.manual_seed(0)
    made = distill.create_student("test_efficientnet", deltas, num_classes=4, size=32, pretrained=False, **settings)
    for parameter in made.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return made


def quantization(of: Student, steps: int = 10, **settings: Any) -> Quantization:
    """From the first of so many steps on."""
    return Quantization(of, QuantizeSettings(epochs=1, **settings), epochs=1, steps_per_epoch=steps)


def images(seed: int = 0) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def logits(of: Quantization, network: Student, step: int, seed: int = 0) -> Tensor:
    value = of(network, images(seed), step).logits
    assert value is not None
    return value


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_against_the_equation(bits: int) -> None:
    weight = torch.randn(5, 3, 2, 2).requires_grad_()
    expected = torch.empty(5, 12)
    for out, row in enumerate(weight.detach().flatten(1)):
        step = row.abs().max() / (2 ** (bits - 1) - 1)
        expected[out] = (row / step).round() * step
    result = rounded_weight(weight, bits)
    torch.testing.assert_close(result.detach(), expected.view_as(weight))
    (gradient,) = torch.autograd.grad(result, weight, ones := torch.rand_like(weight))
    assert torch.equal(gradient, ones), "the gradient of every entry passes"


def test_activations_against_the_equation() -> None:
    x = torch.tensor([-3.0, -1.0, -0.4, 0.0, 1.0, 5.0, 6.0]).requires_grad_()
    result = rounded_activation(x, torch.tensor(-1.0), torch.tensor(5.0), bits=2)  # steps of 2, and 0 is one of them
    assert result.tolist() == [0, 0, 0, 0, 0, 4, 6]
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 1, 1], "none beyond the range"
    positive = rounded_activation(torch.tensor([0.0, 3.0]), torch.tensor(2.0), torch.tensor(4.0), bits=8)
    assert positive[0] == 0, "the range contains 0"
    half = rounded_activation(torch.tensor([0.5]).bfloat16(), torch.tensor(0.0), torch.tensor(1.0), bits=8)
    assert half.dtype == torch.bfloat16
    assert rounded_activation(torch.zeros(2), torch.tensor(0.0), torch.tensor(0.0), bits=8).tolist() == [0, 0]


@pytest.mark.parametrize("form", ["float16", "int8", "sign"])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (4, 3, 2, 2), (2, 5, 3), (2, 3, 5)])
def test_a_tensor_is_rounded_as_it_is_packed(form: Any, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tensor[0] = 0
    once = rounded(tensor, form)
    assert torch.equal(once, unpack(*pack({"x": tensor}, {"x": form}))["x"])
    torch.testing.assert_close(rounded(once, form), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("deltas", ["low_rank", "dora", "sparse", "adapter", ["ia3", "bias", "low_rank"]])
def test_the_student_computes_with_merged_rounded_weights_and_is_left_as_it_was(deltas: Any) -> None:
    own = student(deltas)
    own.eval()
    before, names = own.model(images()), [*own.state_dict()]
    quantized = quantization(own, weights=8)
    plain = copy.deepcopy(own.model)
    if deltas != "adapter":
        merge(plain)
    reference = {name: part for name, part in plain.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))}
    with torch.no_grad():
        for layer in reference.values():
            layer.weight.copy_(rounded_weight(layer.weight, 8))
    assert any("structural" in name for name in reference) == (deltas == "adapter")
    result = logits(quantized, own, step=1)
    torch.testing.assert_close(result, plain(images()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(result, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(own.model(images()), before) and [*own.state_dict()] == names
    result.square().sum().backward()
    trained = {name for name, parameter in own.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in own.named_parameters() if parameter.requires_grad}


def test_inputs_are_rounded_in_ranges_that_follow_the_batches_and_then_stay() -> None:
    own = student()
    own.eval()
    quantized = quantization(own, steps=4, activations=8)
    layers = [part for part in own.model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert quantized.ranges.shape == (len(layers), 2) and quantized.begins == 0 and quantized.fixed == 2
    with torch.no_grad():
        assert torch.equal(logits(quantized, own, 0), own(images()).logits), "the first update only notes"
        logits(quantized, own, 0, seed=1)  # another view, or batch, of this update
        first = quantized.seen.clone()
        quantized.after_update(0)
        assert torch.equal(quantized.ranges, first) and quantized.seen.isinf().all()
        both = torch.cat([images(0), images(1)])
        assert torch.equal(first[0], torch.stack([both.min(), both.max()])), "the stem reads the images"
        result = logits(quantized, own, 1, seed=2)
        quantized.after_update(1)
        view = images(2)
        assert quantized.ranges[0, 0] == pytest.approx(float(view.min().lerp(first[0, 0], 2 / 11)))
        after = quantized.ranges.clone()
        logits(quantized, own, 2, seed=3)
        quantized.after_update(2)
        assert torch.equal(quantized.ranges, after) and quantized.seen.isinf().all(), "they are fixed"

        def by_hand(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            index = next(n for n, other in enumerate(layers) if other is layer)
            return rounded_activation(inputs[0], *first[index], bits=8)

        hooks = [layer.register_forward_pre_hook(by_hand) for layer in layers]
        torch.testing.assert_close(result, own(view).logits)
        for hook in hooks:
            hook.remove()
        view[0, 0, 0, 0] = torch.nan
        assert quantized(own, view, 3).logits.isnan().any(), "rounding must not hide NaN from the guard"


def test_of_the_delta_file_deltas_and_head_are_rounded() -> None:
    own = student(["low_rank", "bias"])
    own.eval()
    quantized = quantization(own, deltas="sign", head="int8")
    stored = copy.deepcopy(own)
    with torch.no_grad():
        for site in stored.sites:
            for parameter in site.delta.parameters():
                parameter.copy_(rounded(parameter, "sign"))
        for parameter in (head := stored.model.get_classifier()).parameters():
            parameter.copy_(rounded(parameter, "int8"))
    expected = stored(images()).logits
    assert head.weight.requires_grad and torch.equal(logits(quantized, own, 0), expected)
    kept = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    with quantized.as_stored(step=0):
        assert torch.equal(own(images()).logits, expected)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in own.state_dict().items())
    weight = own.model.get_classifier().weight
    weights = own.sites[0].delta.A, weight
    for rounds, exact in zip(
        torch.autograd.grad(logits(quantized, own, 0).sum(), weights),
        torch.autograd.grad(stored(images()).logits.sum(), (stored.sites[0].delta.A, head.weight)),
    ):
        torch.testing.assert_close(rounds, exact, rtol=1e-4, atol=1e-6)
    quantized.round_stored()
    assert torch.equal(own(images()).logits, expected)


@pytest.mark.slow
def test_a_quantized_fit_is_resumed_bit_equal(tmp_path: Path) -> None:
    settings = experiment(tmp_path, training={"quantize": INT8})
    straight = straight_fit(settings)
    first = stopped_in(settings, tmp_path / "stopped", STEPS + 1)
    second = student_fit(settings, tmp_path / "stopped")
    assert first.seen + second.seen == straight.seen
    assert_bit_equal(second.weights, straight.weights)


def test_what_ships_is_what_was_trained(tmp_path: Path) -> None:
    settings = experiment(tmp_path, training={"quantize": {"epochs": 1, "deltas": "int8", "head": "float16"}})
    watched = student_fit(settings, tmp_path / "fit")
    again = student_fit(settings, tmp_path / "fit")  # reads the result
    for own in (watched.student, again.student):
        assert own is not None and own.stored == {"deltas": "int8", "head": "float16"}
    trained = watched.student
    assert trained is not None
    with StopSignal() as stop:
        export_student(RunContext.of(settings, stop), settings.export, trained, tmp_path / "export", [])
    manifest, tensors = read_delta(tmp_path / "export" / "delta")
    forms = {name.partition("/")[0]: set() for name in tensors}
    for name in tensors:
        forms[name.partition("/")[0]].add(manifest.packed[name].partition("[")[0])
    assert forms == {"delta": {"int8"}, "head": {"float16"}}
    for site in trained.sites:
        for name, tensor in site.delta.state_dict().items():
            torch.testing.assert_close(tensors[f"delta/{site.key}.{name}"], tensor, rtol=1e-6, atol=0)
            assert tensor.any(), "trained"


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"training": {"quantize": {}}}, "training.quantize", "nothing is quantized"),
        ({"training": {"quantize": INT8, "keep": "best"}}, "training.keep", "before the quantized ones"),
        ({"training": {"quantize": INT8, "early_stop": {}}}, "training.early_stop", "before the quantized ones"),
        ({"training": {"quantize": {"weights": 9}}}, "training.quantize.weights", "8"),
        ({"fit_teacher": {"training": {"quantize": INT8}}}, "fit_teacher.training.quantize", "not exported"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, Any], key: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        experiment(tmp_path, **changes)
    assert key in str(caught.value)


def test_students_that_cannot_be_quantized_are_named(tmp_path: Path) -> None:
    for deltas, settings, text in (
        ("adalora", {"deltas": "int8"}, "quantize.deltas: adalora converts its tensors after training"),
        ([], {"deltas": "int8"}, "has no deltas"),
        ({"type": "ladder", "init": "random", "cache_mb": 1}, {"weights": 8}, "ladder caches the outputs"),
    ):
        with pytest.raises(ValueError, match=text):
            quantization(student(deltas), **settings)
    full = student([], train="full")
    with pytest.raises(ValueError, match="full writes no delta file"):
        quantization(full, head="int8")
    quantization(full, weights=8)
    full.compiled = True
    with pytest.raises(ValueError, match=r"student\.compile to false"):
        quantization(full, weights=8)
    bad = experiment(tmp_path, student={"deltas": []}, training={"quantize": {"epochs": 1, "deltas": "sign"}})
    with pytest.raises(StageError, match=r"training\.quantize\.deltas: the student has no deltas"):
        student_fit(bad, tmp_path / "bad")
    shorter = bad.training.scaled(1).quantize
    assert shorter is not None and shorter.epochs == 0.5
