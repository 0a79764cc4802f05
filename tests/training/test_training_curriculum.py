"""Easy samples first: what is easy, what it is worth, and until when."""

import math
from pathlib import Path

import pytest
import torch
from toy_training import STEPS, control_fit, experiment, student_fit

from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMap, LabelMaps
from distill.objectives.base import Targets
from distill.training.curriculum import Curriculum, easy_first, entropy, gap
from distill.training.module import Distillation
from distill.training.settings import CurriculumSettings

SHAPES = FeatureShapes(classes=3, pooled=4)


def logits(seed: int, batch: int = 6) -> Features:
    return Features(torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed)))


def curriculum(maps: LabelMaps | None = None, **settings) -> Curriculum:
    return Curriculum(CurriculumSettings(epochs=4, **settings), SHAPES, [SHAPES, SHAPES], maps or LabelMaps())


def test_by_hand() -> None:
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    assert entropy(even).item() == pytest.approx(math.log(2))
    assert gap(even, sure).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    assert gap(sure, sure).item() == 0
    weights = easy_first(torch.tensor([0.0, 1.0, 2.0]), 2.0)
    expected = torch.tensor([1.0, math.exp(-2), math.exp(-4)])
    torch.testing.assert_close(weights, expected / expected.mean())
    torch.testing.assert_close(easy_first(torch.tensor([0.0, 100.0, 200.0]), 2.0), weights)
    assert easy_first(torch.zeros(3), 2.0).tolist() == [1, 1, 1]
    assert entropy(torch.tensor([[0.0, torch.nan]])).isnan()
    assert easy_first(torch.tensor([torch.nan, 1.0]), 1.0).isnan().all(), "what is wrong with a network comes out"


def test_strength_falls_to_nothing() -> None:
    strengths = [curriculum(sharpness=2.0).strength(step, 10) for step in (0, 10, 30, 40, 99)]
    assert strengths == pytest.approx([2.0, 1.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("by", ["gap", "entropy"])
@pytest.mark.parametrize("shared", [True, False])
def test_against_a_loop(by: str, shared: bool) -> None:
    students, teachers = [logits(0), logits(1)], [[logits(2), logits(3)], [logits(4), logits(5)]]
    students[0].logits.requires_grad_()
    pairs = ((0, 0), (1, 0), (1, 1))
    teacher_weights = (
        torch.tensor([0.75, 0.25]) if shared else torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(9))
    )
    some = LabelMap({0: [2], 2: [0]}, 3, 3)
    targets = curriculum(LabelMaps([None, some]), by=by)(
        0.7, students, teachers, pairs, [Targets(torch.zeros(6, dtype=torch.int64))] * 2, teacher_weights
    )
    for s, student in enumerate(students):
        difficulty = torch.zeros(6)
        for row in range(6):
            for n, views in enumerate(teachers):
                for t, other in pairs:
                    if other != s:
                        continue
                    student_logits, teacher_logits = student.logits[row].detach(), views[t].logits[row]
                    if n == 1:
                        student_logits, teacher_logits = student_logits[[0, 2]], teacher_logits[[2, 0]]
                    p, q = teacher_logits.softmax(0), student_logits.softmax(0)
                    own = (p * (p / q).log()).sum() if by == "gap" else -(p * p.log()).sum()
                    difficulty[row] += own * (teacher_weights[n] if shared else teacher_weights[n, t, row])
        torch.testing.assert_close(targets[s].weights, easy_first(difficulty, 0.7))
        assert targets[s].weights.mean().item() == pytest.approx(1, rel=1e-5)
        assert not targets[s].weights.requires_grad


def test_in_training_it_weighs_until_its_end(tmp_path: Path) -> None:
    seen: list = []

    def watch(module: Distillation) -> None:
        term = module.step.terms[0]
        if not hasattr(term, "watched"):
            term.watched, forward = True, term.forward
            term.forward = lambda *given: (seen.append(given[3][0].weights), forward(*given))[1]

    training = {"curriculum": {"epochs": 1, "by": "entropy"}}
    student_fit(experiment(tmp_path, training=training), tmp_path / "fit", watch)
    first, second = seen[: STEPS - 1], seen[STEPS - 1 :]  # the first step is over when the term is first watched
    assert all(weights is not None and weights.std() > 0 for weights in first)
    assert len(second) == STEPS and all(weights is None for weights in second)


def test_the_control_without_a_teacher_has_none(tmp_path: Path) -> None:
    from distill.run.context import RunContext
    from distill.training.signals import StopSignal

    settings = experiment(
        tmp_path, training={"curriculum": {"epochs": 1}, "epochs": 1}, augment={"ramp": {"epochs": 1}}
    )
    with StopSignal() as stop:
        summary = control_fit(settings, RunContext.of(settings, stop), STEPS, tmp_path / "control").fit
    assert summary.steps == STEPS
