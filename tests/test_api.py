"""What ``import distill`` offers: lazily, by name, with helpful errors about arguments, and with examples that run."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

import distill
from augment.base import Settings, UserError
from distill.deltas.low_rank import LowRank
from distill.objectives.kd import KD, kd

LITE0 = "embedded:tf_efficientnet_lite0"
METHODS = {
    "DistillationStep": ("forward", "after_update"),
    "DualAugment": ("forward",),
    "Objective": ("__init__", "forward", "loss"),
    "Student": ("forward",),
    "Teacher": ("forward",),
}
"""Of the classes that a loop of one's own calls, and that an objective of one's own writes: arguments and results."""
PUBLIC = [name for name in distill.__all__ if name != "__version__"]


def test_the_import_costs_no_torch():
    code = (
        "import distill, sys; names = dir(distill); assert 'create_student' in names; distill.__version__;"
        "heavy = {'torch', 'lightning', 'timm', 'kornia'} & sys.modules.keys(); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_name_is_there_and_known_to_type_checkers():
    for name in distill.__all__:
        assert getattr(distill, name) is not None
    tree = ast.parse(Path(str(distill.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == distill._HOMES
    assert sorted(typed) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(distill))


def own_classes(hint: object) -> set[type]:
    """The classes of this project in a type, but for settings, in whose place names and mappings are taken."""
    if inspect.isclass(hint):
        named = hint.__module__.partition(".")[0] in ("distill", "augment")
        return {hint} if named and not (issubclass(hint, Settings) and hint.component) else set()
    return set().union(*map(own_classes, get_args(hint)), set())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_can_be_made_with_what_is_offered(name):
    """No signature asks for a class that has to be looked for elsewhere."""
    value = getattr(distill, name)
    functions = [value] if inspect.isfunction(value) else [getattr(value, own) for own in METHODS.get(name, ())]
    offered = {getattr(distill, public) for public in PUBLIC}
    for function in functions:
        hints = get_type_hints(inspect.unwrap(function), localns=dict(vars(value)))  # a class may name what is in it
        if name not in METHODS:
            hints.pop("return")
        assert set().union(*map(own_classes, hints.values())) <= offered, function


def test_a_misspelt_name_is_an_attribute_error_that_names_the_nearest():
    with pytest.raises(AttributeError, match="no attribute 'create_studnt'; did you mean 'create_student'"):
        distill.create_studnt  # noqa: B018


@pytest.mark.parametrize(
    "module",
    [
        "distill",
        "distill.api.deltas",
        "distill.api.models",
        "distill.api.objectives",
        "distill.api.views",
        "distill.training.step",
    ],
)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(import_module(module))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(distill, name))])
def test_functions_document_every_argument_and_have_types(name):
    function = inspect.unwrap(getattr(distill, name))
    text, parameters = inspect.getdoc(function) or "", inspect.signature(function).parameters
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters.values())
    if len(parameters) > 2:
        missing = [parameter for parameter in parameters if f"    {parameter}:" not in text]
        assert not missing and "Args:" in text
        assert "Returns:" in text or "Raises:" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: distill.create_student(LITE0, detlas=["bias"]),
            r"create_student\(\) .*'detlas'; did you mean 'deltas'",
        ),
        (
            lambda: distill.create_student(LITE0, ["bias", {"type": "low_rank", "rnk": 2}]),
            r"deltas\.1, 'low_rank', .*'rnk'; did you mean 'rank'",
        ),
        (lambda: distill.create_student(LITE0, 3), "deltas are names, mappings"),
        (lambda: distill.create_student(LITE0, [KD.Settings()]), r"deltas\.0, .*configures no delta"),
        (lambda: distill.create_teacher(LITE0, sise=32), "'sise'; did you mean 'size'"),
        (lambda: distill.create_objective("kd", temprature=2), "'kd', got .*'temprature'; did you mean 'temperature'"),
        (lambda: distill.create_augment(student=distill.InputSpec((32, 32)), mixx={}), "'mixx'; did you mean 'mix'"),
        (lambda: distill.attach(nn.Linear(4, 4), "bias", haed="0"), "'haed'; did you mean 'head'"),
        (lambda: distill.create_objective("kd", teacher=object()), "without a student"),
    ],
)
def test_misspelt_arguments_name_the_nearest(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill.create_student(LITE0, ["low_rnk"]), "unknown delta type 'low_rnk'; did you mean 'low_rank'"),
        (lambda: distill.create_objective("kdd"), "unknown objective type 'kdd'; did you mean 'kd'"),
        (lambda: distill.create_student("resnet5O"), "no model 'resnet5O'; did you mean 'resnet50'"),
        (
            lambda: distill.create_student(nn.Linear(2, 2), "bias"),
            "expected a timm model.*torch.nn.modules.linear.Linear",
        ),
    ],
)
def test_unknown_methods_and_models_name_the_nearest(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "location", "message"),
    [
        (
            lambda: distill.create_student(LITE0, ["bias", {"type": "low_rank", "rank": 0}]),
            ("deltas", 1, "rank"),
            "greater than or equal to 1",
        ),
        (lambda: distill.create_objective("kd", temperature=-1), ("temperature",), "greater than 0"),
        (
            lambda: distill.create_augment("sharedgeometry", student=distill.InputSpec((32, 32))),
            ("policy",),
            "'shared_geometry'",
        ),
        (
            lambda: distill.create_augment(student=distill.InputSpec((32, 32)), recipe=["Blurr"]),
            ("student", 0, "type"),
            "Blurr",
        ),
        (lambda: distill.create_student(f"{LITE0}x"), ("model",), "did you mean 'tf_efficientnet_lite0'"),
    ],
)
def test_wrong_values_are_reported_at_their_key(call, location, message):
    with pytest.raises(ValidationError) as caught:
        call()
    (error,) = caught.value.errors()
    assert error["loc"] == location and message in error["msg"]


def test_wrong_fields_and_weights_are_refused():
    with pytest.raises(ValueError, match="networks give no 'maaps'; did you mean 'maps'"):
        distill.create_teacher(LITE0, needs="maaps")
    with pytest.raises(ValueError, match="weights must be 1 positive numbers"):
        distill.create_teacher(LITE0, weights=[1, 2])
    with pytest.raises(ValueError, match="at least one network"):
        distill.create_teacher([])
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, not 'fp8'"):
        distill.create_teacher(LITE0, dtype="fp8")


def small(**arguments) -> nn.Module:
    return timm.create_model("test_efficientnet", **arguments)


def test_a_model_that_the_user_has_is_taken_as_it_is():
    torch.manual_seed(0)
    model = small(num_classes=5)
    expected = model.eval()(x := torch.rand(2, 3, 160, 160))
    student = distill.create_student(model, "low_rank")
    assert student.model is model and student.input.size == (160, 160) and student.shapes.classes == 5
    assert torch.allclose(student.eval()(x).logits, expected, atol=1e-5)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in model.named_parameters() if ".delta." in n or n.startswith("classifier")}


def test_a_networks_input_and_checkpoint_are_chosen_as_in_a_config(tmp_path):
    torch.manual_seed(0)
    model = small(num_classes=5, in_chans=2)
    torch.save({f"net.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "own.pth")
    own = {"mean": (0.1, 0.2), "std": [0.3, 0.4], "in_chans": 2, "size": 64}
    file = {"checkpoint": tmp_path / "own.pth", "prefix": "net.", "pretrained": False}
    for network in (
        (student := distill.create_student("test_efficientnet", **own, **file)).network,
        distill.create_teacher("test_efficientnet", **own, **file).inputs,
    ):
        (spec,) = network if isinstance(network, list) else [network.input]
        assert (spec.size, spec.mean, spec.std) == ((64, 64), (0.1, 0.2), (0.3, 0.4))
    x = torch.rand(1, 2, 64, 64)
    assert torch.allclose(student.eval()(x).logits, model.eval()(x), atol=1e-5)
    given = distill.create_teacher([small(), small()], mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    assert {(spec.mean, spec.std) for spec in given.inputs} == {((0.5,) * 3, (0.1,) * 3)}
    with pytest.raises(UserError, match="mean has 1 values, and the input 3 channels"):
        distill.create_student(small(), mean=(0.5,))
    with pytest.raises(ValidationError, match="must be greater than 0"):
        distill.create_student(small(), std=(0.0, 1.0, 1.0))
    with pytest.raises(ValidationError, match="there is no checkpoint"):
        distill.create_teacher("test_efficientnet", prefix="net.")
    for name, value in (("checkpoint", "own.pth"), ("prefix", "net."), ("in_chans", 1)):
        with pytest.raises(TypeError, match=f"{name} can only be given with a model's name"):
            distill.create_student(small(), **{name: value})
    with pytest.raises(ValueError, match="checkpoint is the file of one network, and there are 2"):
        distill.create_teacher(["test_efficientnet"] * 2, checkpoint="own.pth")


def test_a_new_classifier_and_size_for_a_model_that_the_user_has():
    vit = timm.create_model("test_vit", img_size=64)
    assert distill.create_teacher(vit).inputs[0].size == (64, 64)
    student = distill.create_student(vit, num_classes=7, size=96)
    assert student(torch.rand(1, 3, *student.input.size)).logits.shape == (1, 7)
    assert student.input.size == (96, 96)


def test_deltas_are_names_mappings_and_settings():
    sites = ("blocks.1.*",)
    given = ["norm_affine", {"type": "bias", "sites": sites}, LowRank.Settings(rank=2, sites=sites)]
    student = distill.create_student(small(), given, num_classes=3)
    assert {site.delta.settings.type for site in student.sites} == {"norm_affine", "bias", "low_rank"}
    assert {site.delta.settings.rank for site in student.sites if site.delta.settings.type == "low_rank"} == {2}
    assert all(site.name.startswith("blocks.1.") for site in student.sites if site.delta.settings.type == "low_rank")


def test_all_of_the_student_can_be_trained():
    student = distill.create_student(small(), num_classes=3, train="full")
    assert all(p.requires_grad for p in student.parameters())
    with pytest.raises(UserError, match="train='full' has no deltas"):
        distill.save_delta(student, "nowhere")


def test_several_teachers_are_weighed_and_frozen():
    teacher = distill.create_teacher([small(), small()], weights=[1, 3], dtype="bfloat16", needs=("logits", "pooled"))
    assert teacher.weights == [0.25, 0.75] and teacher.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(UserError, match=r"kd reads one network.*teacher.shapes\[n\]"):
        distill.create_objective("kd", student=distill.create_student(small()), teacher=teacher)


def test_an_objective_without_networks_equals_the_function():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    objective = distill.create_objective("kd", temperature=2)
    assert "unbound" in repr(objective)
    batch = distill.Targets(torch.zeros(4, dtype=torch.int64))
    value = objective(distill.Features(logits=student), distill.Features(logits=teacher), batch)
    assert torch.equal(value, kd(student, teacher, temperature=2))
    assert "KD" in repr(objective)
    bound = distill.create_objective(
        {"type": "kd", "temperature": 2},
        student=distill.create_student(small()),
        teacher=distill.create_teacher(small()),
    )
    assert bound.settings.temperature == 2 and isinstance(bound, KD)


def test_an_objective_with_projectors_needs_the_networks():
    objective = distill.create_objective("vid")
    maps = {"a": torch.rand(2, 4, 8, 8)}
    features = distill.Features(logits=torch.rand(2, 3), maps=maps)
    with pytest.raises(UserError, match=r"vid has parameters .* must be built before the optimizer"):
        objective(features, features, distill.Targets(torch.zeros(2, dtype=torch.int64)))


def test_an_objective_says_which_field_a_network_does_not_compute():
    student, teacher = distill.create_student(small()), distill.create_teacher(small(), needs=("pooled",))
    with pytest.raises(
        UserError, match=r"pkt reads pooled, which the student does not compute; .*needs=\('logits', 'pooled',\)"
    ):
        distill.create_objective("pkt", student=student, teacher=teacher)


def test_views_have_the_sizes_that_the_networks_expect():
    student = distill.create_student(small(), num_classes=3, size=32)
    teacher = distill.create_teacher(small(), size=48)
    augment = distill.create_augment("identical", student=student, teacher=teacher, recipe="weak", seed=3)
    images, ids = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([1, 2])
    views = augment(images, ids, epoch=0)
    assert isinstance(views, distill.Views)
    assert views.student[0].shape == (2, 3, 32, 32) and views.teacher[0][0].shape == (2, 3, 48, 48)
    again = distill.create_augment("identical", student=student, teacher=teacher, recipe="weak", seed=3)
    assert torch.equal(again(images[1:], ids[1:], epoch=0).student[0], views.student[0][1:])
    assert distill.create_augment(student=student)(images, ids, 0).teacher == ()


def test_lists_are_sorted_and_can_be_filtered():
    assert {"kd", "dkd", "crd"} <= set(distill.list_objectives())
    assert {"low_rank", "dora", "ladder"} <= set(distill.list_deltas())
    assert {"PadCrop", "RandomResizedCrop"} <= set(distill.list_operations())
    for names in (distill.list_objectives(), distill.list_deltas(), distill.list_operations()):
        assert names == sorted(names)
    assert distill.list_deltas("LOW*") == ["low_rank"] and distill.list_deltas("nothing") == []


def test_a_delta_file_from_and_to_models(tmp_path):
    torch.manual_seed(0)
    student = distill.create_student(LITE0, "bias", num_classes=4, size=32)
    with torch.no_grad():
        for site in student.sites:
            for parameter in site.delta.parameters():
                parameter.normal_(std=0.1)
    distill.save_delta(student, tmp_path / "delta", labels=["a", "b", "c", "d"])
    expected = student.eval()(x := torch.rand(1, 3, 32, 32)).logits
    plain = distill.create_student(LITE0, num_classes=4, size=32).model
    for backbone in (None, LITE0, plain):
        model = distill.load_delta(tmp_path / "delta", backbone)
        assert torch.allclose(model(x), expected, atol=1e-5)
    distill.merge(model)
    assert not hasattr(model.conv_stem, "parametrizations") and torch.allclose(model(x), expected, atol=1e-5)
    bank = distill.DeltaBank(plain)
    bank.add("first", tmp_path / "delta")
    assert torch.allclose(bank.batch(x, ["first"])[0], expected, atol=1e-5)
    with pytest.raises(UserError, match="made for another backbone"):
        distill.load_delta(tmp_path / "delta", "embedded:tf_efficientnet_lite1")
