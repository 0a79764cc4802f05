"""The pure step: in a plain torch loop it is what Lightning's fit does, and it needs no Lightning."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from toy_training import STEPS, assert_bit_equal, experiment, student_fit

import distill
from augment.base import UserError
from augment.draws import sample_key
from distill.data.base import UNLABELED
from distill.training.module import Distillation
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.step import DistillationStep


@pytest.mark.slow
def test_the_step_imports_no_lightning() -> None:
    code = (
        "import sys, distill; distill.DistillationStep, distill.create_step;"
        "loaded = [name for name in sys.modules if name.startswith('lightning')]; assert not loaded, loaded;"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def gradients(step: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: p.grad.clone() for key, p in step.named_parameters() if p.grad is not None}


def test_a_plain_loop_is_the_fit_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(tmp_path, training={"clip_norm": None, "ema": None})
    batches: list[Any] = []
    losses: list[torch.Tensor] = []
    terms: list[torch.Tensor] = []
    fit_gradients: list[dict[str, torch.Tensor]] = []
    steps: list[DistillationStep] = []
    training_step = Distillation.training_step
    clip = Distillation.configure_gradient_clipping

    def noted_step(module: Distillation, batch: Any, index: int) -> torch.Tensor:
        if not steps:  # the same parts as they are before the first step
            own = module.step
            parts = copy.deepcopy((own.student, own.teacher, list(own.terms), own.augment))
            steps.append(DistillationStep(*parts, own.settings, own.steps_per_epoch))
        batches.append((batch, module.current_epoch))
        loss = training_step(module, batch, index)
        losses.append(loss.detach().clone())
        assert module._batch_sums is not None
        terms.append(module._batch_sums[1:].clone())
        return loss

    def noted_clip(module: Distillation, *arguments: Any, **more: Any) -> None:
        fit_gradients.append(gradients(module.step))
        clip(module, *arguments, **more)

    monkeypatch.setattr(Distillation, "training_step", noted_step)
    monkeypatch.setattr(Distillation, "configure_gradient_clipping", noted_clip)
    watched = student_fit(settings, tmp_path / "fit")
    assert len(batches) == 2 * STEPS and [epoch for _, epoch in batches] == [0] * STEPS + [1] * STEPS

    (step,) = steps
    step.train()
    trained = torch.nn.ModuleList([step.student, step.terms])  # type: ignore[list-item]
    optimizer = build_optimizer(trained, [step.student.model.get_classifier()], settings.training.optimizer)  # type: ignore[operator]
    schedule = build_schedule(optimizer, settings.training.schedule, settings.training.epochs, STEPS)
    for number, (batch, epoch) in enumerate(batches):
        output = step(batch.images, batch.ids, batch.labels, epoch=epoch, step=number)
        assert torch.equal(output.loss, losses[number]) and torch.equal(output.terms, terms[number]), number
        optimizer.zero_grad()
        output.loss.backward()
        assert_bit_equal(gradients(step), fit_gradients[number])
        optimizer.step()
        schedule.step()
        step.after_update(number)
    assert len({loss.item() for loss in losses}) == len(losses), "a step is not like another"
    assert step.term_names == ["ce", "kd", "icd"]
    assert_bit_equal(step.student.own_state(), watched.weights)


IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(4)


def step_of(objectives: Any, teachers: int = 1, **more: Any) -> DistillationStep:
    torch.manual_seed(0)
    needs = ("logits", "pooled")
    student = distill.create_student(
        timm.create_model("test_efficientnet"), "bias", num_classes=4, size=32, needs=needs
    )
    models = [timm.create_model("test_resnet", num_classes=4) for _ in range(teachers)]
    teacher = distill.create_teacher(models, size=32, needs=needs, weights=range(1, teachers + 1)) if models else None
    augment = distill.create_augment(student=student, teacher=teacher, recipe="weak")
    return distill.create_step(student, teacher, objectives, augment, steps_per_epoch=2, **more)


def test_without_labels_all_samples_are_unlabeled() -> None:
    step = step_of(["ce", "kd"]).eval()
    labels = torch.full((4,), UNLABELED)
    with torch.no_grad():
        output = step(IMAGES, IDS, epoch=0, step=0)
        same = step(IMAGES, IDS, labels, epoch=0, step=0)
        labeled = step(IMAGES, IDS, torch.arange(4), epoch=0, step=0)
    assert torch.equal(output.terms, same.terms) and torch.equal(output.loss, same.loss)
    assert output.terms[0] == 0 < labeled.terms[0] and output.terms[1] == labeled.terms[1] > 0


def test_one_label_for_each_image() -> None:
    with pytest.raises(ValueError, match=r"labels must be \[4\], one for each id, not \[3\]"):
        step_of("ce", teachers=0)(IMAGES, IDS, torch.arange(3), epoch=0, step=0)


def test_weights_schedules_and_teachers_are_those_of_the_settings() -> None:
    kd = {"type": "kd", "weight": 3, "schedule": {"start": 1}}
    step = step_of([{"type": "ce", "weight": 2}, kd], teachers=2, epochs=2).eval()
    with torch.no_grad():
        first = step(IMAGES, IDS, IDS, epoch=0, step=0)
        later = step(IMAGES, IDS, IDS, epoch=0, step=2)
        views = step.augment(IMAGES, IDS, 0)
        student, teachers = step.student(views.student[0]), step.teacher(views.teacher)  # type: ignore[misc]
        objective = distill.create_objective("kd")
        by_network = [objective(student, outputs[0], distill.Targets(IDS)) for outputs in teachers]
    assert torch.equal(first.terms, later.terms)
    assert torch.allclose(first.terms[1], by_network[0] / 3 + by_network[1] * 2 / 3)
    assert torch.allclose(first.loss, 2 * first.terms[0])
    assert torch.allclose(later.loss, 2 * first.terms[0] + 3 * first.terms[1])
    text = repr(step)
    for shown in ("steps_per_epoch=2, epochs=2", "kd, weight=3", "type=fixed, networks=2", "engine=fused, passes=1"):
        assert shown in text, shown


def test_a_memory_bank_needs_the_training_samples() -> None:
    crd = [{"type": "crd", "dim": 4, "negatives": 3}]
    with pytest.raises(ValueError, match=r"crd has a memory bank .* give train=\(names, labels\)"):
        step_of(crd)
    names = [f"image-{n}" for n in range(8)]
    step = step_of(crd, train=(names, torch.arange(8) % 4))
    ids = torch.tensor([sample_key(name) for name in names[2:6]])
    assert step(IMAGES, ids, torch.tensor([2, 3, 0, 1]), epoch=0, step=0).loss > 0
    with pytest.raises(ValueError, match="not in the training split"):
        step(IMAGES, IDS, IDS, epoch=0, step=0)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one objective"):
        step_of([])
    with pytest.raises(ValueError, match="kd reads a teacher, and there is none"):
        step_of(["ce", "kd"], teachers=0)
    with pytest.raises(TypeError, match=r"objectives\.1, 'kd', .*'temprature'; did you mean 'temperature'"):
        step_of(["ce", {"type": "kd", "temprature": 2}])
    with pytest.raises(UserError, match="reviewkd reads maps"):
        step_of(["reviewkd"])
