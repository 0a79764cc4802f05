"""A stream that is learned without labels: projectors go on, a momentum network follows, CaSSLe keeps the old model."""

from pathlib import Path

import pytest
import torch
from toy_stream import learn_only, stream
from toy_training import whole

from distill.training.fit import load_carried
from distill.training.module import Distillation
from distill.training.step import DistillationStep


@pytest.mark.slow
def test_the_projector_of_the_task_before_is_the_start_and_the_old_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[DistillationStep] = []
    starts: list[dict[str, torch.Tensor]] = []
    original = Distillation.on_fit_start

    def noting(module: Distillation) -> None:
        original(module)
        steps.append(module.step)
        starts.append({key: value.clone() for key, value in module.step.terms[0].state_dict().items()})

    monkeypatch.setattr(Distillation, "on_fit_start", noting)
    byol = {"type": "byol", "hidden": 8, "dim": 4}
    settings = stream(
        tmp_path,
        strategy={"type": "go_on"},
        student=whole(tmp_path),
        augment={"policy": "both_to_both"},
        teacher={"networks": [{"model": "momentum"}, {"model": "previous"}]},
        objectives=[byol, {"type": "cassle", "projector": "byol", "hidden": 8}],
    )
    run = learn_only(settings)
    first, second = steps
    assert (first.term_names, second.term_names) == (["byol"], ["byol", "cassle"])
    assert first.teacher is None and second.teacher is not None and second.momentum is not None
    carried = load_carried(run / "task-1/student/fit")["byol"]
    own = [key for key in carried if "target_projector" not in key]
    assert carried.keys() == starts[1].keys() and own and all(torch.equal(carried[key], starts[1][key]) for key in own)
    target = starts[1]["objectives.0.target_projector.0_weight"]
    assert torch.equal(target, carried["objectives.0.projector.0.weight"]), "it starts equal, as the momentum network"
    old = second.terms[1].objectives[0].old_projector  # type: ignore[union-attr]
    assert torch.equal(old.get_buffer("0_weight"), carried["objectives.0.projector.0.weight"])  # type: ignore[operator]
    assert not torch.equal(second.terms[0].objectives[0].projector[0].weight, old.get_buffer("0_weight"))  # type: ignore
