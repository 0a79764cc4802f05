"""Fits whose student prepares itself: ranks by a budget, HALRP's procedure, AdaLoRA; killed, resumed and exported."""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import (
    STEPS,
    Fault,
    Watched,
    assert_bit_equal,
    control_fit,
    experiment,
    fit_teachers,
    student_fit,
    student_spec,
    tree,
)

from distill.config import Experiment, validate_tree
from distill.deltas.base import DeltaError
from distill.deltas.halrp import closed_form
from distill.deltas.inventory import inventory
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state, head_state
from distill.export.delta.io import load_delta, save_delta
from distill.models.network import create_network
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.prepare import StudentSpec, load_trained
from distill.run.warm_up import StudentCalibration, WarmUp
from distill.run.warm_up_stats import linear_cka
from distill.training.signals import Interrupted, StopSignal

SITES = ["conv_stem", "blocks.[0123].*"]
BUDGET = {"type": "low_rank", "ranks": {"budget": "6KB"}, "sites": SITES}
HALRP = {"type": "halrp", "ranks": {"alpha": 0.9}, "kinds": ["conv"]}


def with_deltas(output: Path, *deltas: Any, **changes: Any) -> Experiment:
    return experiment(output, student={"deltas": list(deltas)}, **changes)


def calibration(settings: Experiment, folder: Path, stop: StopSignal) -> StudentCalibration:
    context = RunContext.of(settings, stop)
    teacher = Teacher(fit_teachers(settings, context), [1.0], frozenset({"logits", "pooled"}))
    fit_spec = FitSpec(context, teacher, settings.objectives, settings.augment, settings.training)
    spec = StudentSpec(settings.student, settings.seed, 4, frozenset({"logits", "pooled"}))
    return StudentCalibration(WarmUp(spec, fit_spec, folder, "student", settings.training.epochs), 0)


def ranks(student: Student) -> dict[str, int]:
    return {layer.site: layer.rank for layer in inventory(student.model) if layer.rank is not None}


class Enough(Exception):
    """The test has seen what it came for."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "deltas"),
    [
        (2, [BUDGET]),
        (-3, [{**BUDGET, "ranks": {"budget": "6KB", "start": "warm_up"}}, "bias"]),
        (-3, [HALRP]),
        (-3, [{"type": "adalora", "rank": 4, "interval": 2, "budget": "8KB"}, "bias"]),
    ],
    ids=["low_rank in its warm-up", "low_rank that goes on from it", "halrp", "adalora"],
)
def test_killed_it_goes_on_to_the_same_student(call: int, deltas: list, tmp_path: Path) -> None:
    settings = with_deltas(tmp_path, *deltas)
    whole = student_fit(settings, tmp_path / "whole")
    assert whole.student is not None and whole.summary is not None and whole.summary.steps == 2 * STEPS
    if "ranks" not in deltas[0]:
        assert len(whole.seen) == 2 * STEPS
    else:
        assert len(whole.seen) > 3 * STEPS, "a warm-up of an epoch, and a pass for the gradients"

    folder = tmp_path / "killed"
    with pytest.raises(Interrupted):
        student_fit(settings, folder, killing(call % len(whole.seen)))
    resumed = student_fit(settings, folder)
    assert resumed.student is not None
    assert ranks(resumed.student) == ranks(whole.student)
    assert_bit_equal(resumed.weights, whole.weights)

    with StopSignal() as stop:
        again = load_trained(student_spec(settings, RunContext.of(settings, stop)), tmp_path / "whole")
    assert_bit_equal(again.own_state(), whole.weights)
    _check_export(settings, whole.student, tmp_path / "export")


def killing(call: int) -> Fault:
    """SIGTERM in the middle of so many calls of the training step, whatever they are for."""
    calls = itertools.count()
    return lambda module: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == call else None


def _check_export(settings: Experiment, student: Student, folder: Path) -> None:
    """The delta file holds the ranks, and loads onto a backbone without any data."""
    save_delta(folder, student.model, student.backbone, origin="toy")
    torch.manual_seed(settings.seed)
    loaded = load_delta(folder, create_network(settings.student.network, 4).model)
    assert_bit_equal(delta_state(loaded), delta_state(student.model))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(loaded(x), student.model.eval()(x))
    assert [(layer.site, layer.rank) for layer in inventory(loaded)] == [
        (o.site, o.rank) for o in inventory(student.model)
    ]


@pytest.mark.slow
def test_a_budget_is_kept_and_nearly_used(tmp_path: Path) -> None:
    for importance in ("fisher", "feature_change", "uniform"):
        budget = {**BUDGET, "ranks": {"budget": "9KB", "importance": importance}}
        settings = with_deltas(tmp_path, budget, training={"epochs": 1})
        student = student_fit(settings, tmp_path / importance).student
        assert student is not None
        spent = sum(layer.bytes for layer in inventory(student.model))
        assert 9000 - 1000 < spent <= 9000, importance
        assert (len(set(ranks(student).values())) > 1) or importance == "uniform"


def test_a_budget_that_buys_nothing_says_what_would(tmp_path: Path) -> None:
    settings = with_deltas(tmp_path, {**BUDGET, "ranks": {"budget": 100}})
    with pytest.raises(DeltaError, match=r"100 bytes is too small for one rank: the smallest, of '[\w.]+', takes \d+"):
        student_fit(settings, tmp_path / "fit")


def test_what_would_fail_later_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    """HALRP prunes after training, AdaLoRA buys ranks in it, a budget is spent after a warm-up."""
    for deltas in (
        {**HALRP, "max_growth": 0.001},
        {"type": "adalora", "budget": 100},
        {**BUDGET, "ranks": {"budget": 9}},
    ):
        with pytest.raises(DeltaError, match=r"too small|more than max_growth"):
            student_fit(with_deltas(tmp_path, deltas), tmp_path / "fit", lambda module: pytest.fail("it trains"))


@pytest.mark.slow
def test_evidence_is_the_loss_and_the_weights_of_the_free_student(tmp_path: Path) -> None:
    """Gradients by finite differences of the fit's own loss; free weights are backbone plus dense change."""
    settings = with_deltas(tmp_path, {**BUDGET, "sites": ["blocks.1.0.conv_pwl", "conv_stem"]})
    with StopSignal() as stop:
        seen = calibration(settings, tmp_path / "e", stop)
        start, after = seen.after(0), seen.after(1)
        assert list(seen.layers) == ["conv_stem", "blocks.1.0.conv_pwl"]
        for site, layer in seen.layers.items():
            assert torch.equal(start.weights[site], layer.weight) and not torch.equal(after.weights[site], layer.weight)
        gradients = start.gradients(8)["conv_stem"]
        assert torch.allclose(gradients.square, gradients.mean.square()), "one batch"
        assert gradients.inputs > 0
        point = start.point
        with point._module() as module:
            [batch] = point._batches(module, 8)
            D, direction = point.dense_deltas(0)["conv_stem"].D, torch.zeros_like(gradients.mean)
            direction[gradients.mean.abs() == gradients.mean.abs().max()] = 1.0
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    D.copy_(sign * 1e-2 * direction)
                    losses.append(float(module.training_step(batch, 0)))
                    D.zero_()
        slope = (losses[0] - losses[1]) / 2e-2
        assert slope == pytest.approx(float((gradients.mean * direction).sum()), rel=0.05)
        several = start.gradients(40)["conv_stem"]
        assert (several.square >= several.mean.square() - 1e-12).all() and not torch.equal(several.mean, gradients.mean)
        changes = after.feature_change(16)
        assert all(0 < change < 1 for change in changes.values())
        assert start.feature_change(16) == {site: pytest.approx(0, abs=1e-9) for site in seen.layers}
        head = seen.after(1, "head")
        assert torch.equal(head.weights["conv_stem"], seen.layers["conv_stem"].weight)
        names = classifier_names(head.student.model)
        assert not torch.equal(
            head_state(head.student.model, names)["classifier.weight"],
            head_state(start.student.model, names)["classifier.weight"],
        )


@pytest.mark.slow
def test_halrp_starts_from_the_closed_forms_of_its_warm_up(tmp_path: Path) -> None:
    settings = with_deltas(tmp_path, HALRP, "bias")
    began = Watched()

    def stop_at_once(module: Any) -> None:
        entries = module.step.student.entries
        if entries and "HALRP" in {type(delta).__name__ for delta in entries[0].values()}:
            raise Enough

    with pytest.raises(Enough):
        student_fit(settings, tmp_path / "fit", stop_at_once, began)
    student = began.student
    assert student is not None
    with StopSignal() as stop:
        seen = calibration(settings, tmp_path / "fit", stop)  # finds the warm-up there
        free = seen.after(1)
        for site, delta in student.entries[0].items():
            layer: Any = seen.layers[site]
            rows, columns = closed_form(layer.weight, free.weights[site])
            assert torch.allclose(delta.R, rows - 1, atol=1e-6) and torch.allclose(delta.S, columns - 1, atol=1e-6)
            near = (delta(layer.weight) - free.weights[site]).norm()
            assert near <= (layer.weight - free.weights[site]).norm(), f"{site}: closer to W_free than W is"
        for site, delta in student.entries[1].items():
            assert torch.equal(delta.shift, free.student.entries[1][site].shift), "biases go on from the warm-up too"
        assert any(delta.shift.any() for delta in student.entries[1].values())
    names = classifier_names(student.model)
    assert_bit_equal(head_state(student.model, names), head_state(free.student.model, names))
    fresh = new_student_state(settings)
    assert_bit_equal(backbone_state(student.model, names), fresh)


def new_student_state(settings: Experiment) -> dict[str, torch.Tensor]:
    plain = settings.model_copy(update={"student": settings.student.model_copy(update={"deltas": ()})})
    with StopSignal() as stop:
        model = student_spec(plain, RunContext.of(plain, stop)).build().model
    return backbone_state(model, classifier_names(model))


def test_the_control_prepares_itself_without_the_teacher(tmp_path: Path) -> None:
    settings = with_deltas(tmp_path, BUDGET, data={"labels_per_class": 4}, teacher=None, objectives=[{"type": "ce"}])
    with StopSignal() as stop:
        trained = control_fit(settings, RunContext.of(settings, stop), 4, tmp_path / "control")
    assert trained.fit.steps >= 4 and sum(delta.bytes for delta in inventory(trained.student.model)) <= 6000
    assert (tmp_path / "control" / "prepared.ckpt").is_file()


def test_linear_cka_by_hand_and_its_invariances() -> None:
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    y = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    xc, yc = x - x.mean(0), y - y.mean(0)
    plain = (yc.T @ xc).square().sum() / ((xc.T @ xc).norm() * (yc.T @ yc).norm())
    assert float(linear_cka(x, y)) == pytest.approx(float(plain))
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)).double())[0]
    assert float(linear_cka(x, 3 * x @ rotation + 1)) == pytest.approx(1)
    assert float(linear_cka(torch.ones(4, 2), torch.ones(4, 2))) == 1


def test_ranks_are_refused_where_nothing_was_trained(tmp_path: Path) -> None:
    settings = with_deltas(tmp_path, BUDGET)
    with StopSignal() as stop, pytest.raises(DeltaError, match="has no rank yet: training chooses ranks"):
        student_spec(settings, RunContext.of(settings, stop)).build()
    with pytest.raises(ValueError, match=r"student.deltas.0.rank: ranks chooses the rank of every layer"):
        validate_tree(tree(tmp_path, student={"deltas": [{**BUDGET, "rank": 3}]}), "toy")
