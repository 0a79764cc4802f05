"""SimKD in a fit: the head that is evaluated and kept is the teacher's classifier behind the trained projector."""

from pathlib import Path

import pytest
import torch
from toy_training import Watched, experiment, student_fit, whole

from distill.run.workshop import StageError
from distill.training.module import Distillation


@pytest.mark.parametrize("train", ["deltas", "whole"])
@pytest.mark.parametrize("objectives", [["simkd"], ["ce", "simkd"]], ids="+".join)
def test_the_students_head_is_the_folded_one(train: str, objectives: list[str], tmp_path: Path) -> None:
    student = {} if train == "deltas" else whole(tmp_path)
    changes = {"objectives": objectives, "training": {"epochs": 1, "ema": None}, "student": student}
    modules: list[Distillation] = []
    watched = student_fit(experiment(tmp_path, **changes), tmp_path / "fit", modules.append, Watched())
    module, fitted = modules[-1], watched.student
    projector = module.terms[-1].objectives[0].projector
    reused = module.teacher.networks[0].get_classifier()
    view = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        fitted.needs = frozenset({"logits", "pooled"})
        seen = fitted.eval()(view)
        expected = reused(projector(seen.pooled))
    torch.testing.assert_close(seen.logits, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(fitted.model.get_classifier(), torch.nn.Linear)
    kept = {key.partition("objectives.0.")[2] for key in module.trained_state() if key.startswith("terms.")}
    assert kept - {""} == {"projector.weight", "projector.bias"}


def test_a_delta_on_the_head_is_in_the_way(tmp_path: Path) -> None:
    deltas = [{"type": "low_rank", "rank": 2, "sites": ["*", "classifier"]}]
    with pytest.raises(StageError, match="simkd writes the student's head, but a delta changes that layer"):
        student_fit(experiment(tmp_path, objectives=["simkd"], student={"deltas": deltas}), tmp_path / "fit")
