"""Student and teacher of one backbone: the trunk that they share is computed once, and nothing else changes."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from toy_training import assert_bit_equal, experiment, network, student_fit

import distill.training.module
from augment.dual import AugmentSettings, DualAugment
from distill.data.reader import Batch
from distill.models.network import Network, create_network
from distill.models.settings import LearningSettings, NetworkSettings
from distill.models.shared_trunk import SharedTrunk
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.objectives.at import AT
from distill.objectives.ce import CrossEntropy
from distill.objectives.kd import KD
from distill.training.module import Distillation
from distill.training.progress import FitProgress
from distill.training.settings import TrainingSettings
from distill.training.step import DistillationStep
from distill.training.terms import build_terms, needs_of

CE_AND_KD = (CrossEntropy.Settings(), KD.Settings())
LATE = {"test_resnet": "layer4.*", "test_efficientnet": "blocks.3.*", "test_vit": "blocks.5.*"}


def made(name: str, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return create_network(NetworkSettings(model=name, pretrained=False, size=64), 4)


def distillation(
    name: str = "test_efficientnet",
    deltas: Any = None,
    teachers: list[Network] | None = None,
    policy: str = "identical",
    dtype: torch.dtype = torch.float32,
    objectives: Any = CE_AND_KD,
    **training: Any,
) -> Distillation:
    deltas = [{"type": "low_rank", "rank": 2, "sites": LATE[name]}] if deltas is None else deltas
    settings = LearningSettings.model_validate({"deltas": deltas})
    of_student, of_teacher = needs_of(objectives)
    student = Student(made(name), settings, of_student)
    teacher = Teacher(teachers or [made(name)], needs=of_teacher, dtype=dtype)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:  # as in the midst of a training
                parameter.add_(0.05 * torch.randn(parameter.shape))
    terms = build_terms(objectives, student.shapes, teacher.shapes)
    views = AugmentSettings.model_validate({"policy": policy, "student": ["RandomHorizontalFlip"]})
    dual = DualAugment(views, teacher.inputs, student.input, seed=0)
    return Distillation(DistillationStep(student, teacher, terms, dual, TrainingSettings(epochs=1, **training), 1))


def step(module: Distillation) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and floating-point operations of one step."""
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    module.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter:
        loss = module.training_step(Batch(images, torch.arange(4), torch.arange(4)), 0)
        loss.backward()
    gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, counter.get_total_flops()


def assert_same_step(module: Distillation) -> tuple[int, int]:
    """Returns the step's operations with the trunk, and without."""
    loss, gradients, apart = step(module)
    module.on_fit_start()
    shared_loss, shared_gradients, shared = step(module)
    assert torch.equal(shared_loss, loss)
    assert_bit_equal(shared_gradients, gradients)
    return shared, apart


CASES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in LATE},
    "maps": {"objectives": (KD.Settings(), AT.Settings(weight=10.0))},
    "both_to_both": {"policy": "both_to_both"},
    "ladder": {"name": "test_resnet", "deltas": [{"type": "ladder", "init": "random"}]},
    "ladder on tokens": {"name": "test_vit", "deltas": [{"type": "ladder", "init": "random", "every": 2}]},
    "output": {"deltas": [{"type": "output"}]},
    "adapter": {"name": "test_vit", "deltas": [{"type": "adapter", "sites": "blocks.5"}]},
    "head alone": {"deltas": []},
}


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_the_same_and_takes_less(case: str) -> None:
    module = distillation(**CASES[case])
    shared, apart = assert_same_step(module)
    assert module.note.startswith("shared trunk: ") and module.note.endswith("and computed once")
    assert shared < 0.85 * apart


NOT_SHARED: dict[str, dict[str, Any]] = {
    "delta in the stem": {"deltas": [{"type": "low_rank", "rank": 1, "sites": "conv_stem"}]},
    "other views": {"policy": "independent"},
    "other weights": {"teachers": [made("test_efficientnet", seed=1)]},
    "another backbone": {"teachers": [made("test_resnet")]},
    "bfloat16 teacher": {"dtype": torch.bfloat16},
    "bfloat16 student": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("case", NOT_SHARED)
def test_what_is_not_the_same_is_not_shared(case: str) -> None:
    module = distillation(**NOT_SHARED[case])
    shared, apart = assert_same_step(module)
    assert shared == apart and not module.step.trunk.taken(1)
    note = "no shared trunk: the student computes in" if "bfloat16" in case else ""
    assert module.note.startswith(note) and bool(module.note) == bool(note)


@pytest.mark.parametrize("other", [("test_resnet", 0), ("test_efficientnet", 1)])
def test_networks_without_a_common_layer_are_not_tried_out(other: tuple[str, int]) -> None:
    module = distillation(teachers=[made(*other)])
    calls: list[nn.Module] = []
    module.step.teacher.register_forward_hook(lambda teacher, *unused: calls.append(teacher))  # type: ignore[union-attr]
    module.on_fit_start()
    assert not calls, "pooling, activations and fresh norms are no trunk"


def test_compiled_networks_are_left_alone() -> None:
    module = distillation()
    module.step.student.compiled = True
    module.on_fit_start()
    assert module.note == "no shared trunk: compiled networks (student.compile, teacher.compile) cannot share layers"


def test_batch_statistics_that_move_are_not_shared() -> None:
    """A part in training mode, whatever has brought it there."""
    module = distillation()
    module.on_fit_start()
    module.step.student._frozen._modules.clear()
    module.step.student.train()
    (norm,) = [part for key, part in module.step.student.model.named_modules() if key == "bn1"]
    before = norm.running_mean.clone()  # type: ignore[union-attr, operator]
    step(module)
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]


def test_teachers_share_with_each_other() -> None:
    first, second = made("test_efficientnet"), made("test_efficientnet")
    nn.init.normal_(second.model.get_classifier().weight)  # type: ignore[operator]
    module = distillation("test_resnet", teachers=[first, second], policy="independent")
    shared, apart = assert_same_step(module)
    assert shared < apart
    assert "17 of 18 convs and linear layers of teacher.networks.1 are" in module.note


def test_a_fit_comes_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(
        tmp_path,
        augment={"policy": "identical"},
        teacher={"networks": [network(tmp_path, "test_efficientnet")]},
        student={"deltas": [{"type": "low_rank", "rank": 2, "sites": "blocks.3.*"}]},
    )
    notes: list[str] = []
    shared = student_fit(settings, tmp_path / "shared", lambda module: notes.append(module.note))
    assert "of 18 convs and linear layers of the student are also in another network" in notes[-1]
    monkeypatch.setattr(distill.training.module, "share_trunk", lambda *given: (SharedTrunk(), ""))
    assert_bit_equal(shared.weights, student_fit(settings, tmp_path / "apart").weights)


def test_it_is_said_once() -> None:
    told = StringIO()
    FitProgress("student", Console(file=told)).note("student: shared trunk")
    FitProgress("student", None).note("nobody listens")
    assert told.getvalue() == "student: shared trunk\n"
