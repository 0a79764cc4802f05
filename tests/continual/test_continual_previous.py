"""The old model as a teacher: read from files, frozen, its classes mapped, absent in the first task."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_stream import learn_only, rewrite_delta, stream, stream_tree
from toy_training import assert_bit_equal, network, tree

from distill.config import validate_tree
from distill.export.delta.io import load_delta
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.run.context import RunContext
from distill.stages.learn_task import LearnTask
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.module import Distillation
from distill.training.step import DistillationStep
from distill.yaml_tree import ConfigError

PREVIOUS = {"model": "previous"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [{"type": "kd"}]}, "objectives: kd read the previous model, which the first task lacks"),
        ({"strategy": {"type": "first_task"}}, r"networks\.0\.model: strategy first_task trains no student after"),
        ({"teacher": {"networks": [{**PREVIOUS, "size": 64}]}}, r"networks\.0\.size: the previous model is the stud"),
        ({"teacher": {"networks": [PREVIOUS, PREVIOUS]}}, r"networks\.1\.model: previous is among the networks alread"),
        ({"objectives": [{"type": "ce"}, {"type": "simkd"}]}, "simkd gives the student the teacher's head, and the"),
    ],
)
def test_config_errors_name_the_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = {"strategy": {"type": "sequential"}, "teacher": {"networks": [PREVIOUS]}}
    base["objectives"] = [{"type": "ce"}, {"type": "kd"}]
    with pytest.raises(ConfigError, match=message):
        validate_tree(stream_tree(tmp_path, **{**base, **changes}), "stream")


def test_there_is_no_previous_model_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.networks\.0\.model: previous is .* kind: distillation has no ta"):
        validate_tree(tree(tmp_path, teacher={"networks": [PREVIOUS]}), "toy")


@pytest.mark.slow
def test_a_head_per_task_knows_no_class_of_the_next_task(tmp_path: Path) -> None:
    settings = stream(tmp_path, teacher={"networks": [PREVIOUS]}, objectives=[{"type": "ce"}, {"type": "kd"}])
    with pytest.raises(ValueError, match=r"task-2/student: teacher\.networks: the previous model knows none of"):
        learn_only(settings)
    assert not (tmp_path / "stream/task-1/student/fit").exists(), "found before anything is trained"


class Watched:
    """What the training steps of a stream had as teacher."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.terms: list[list[str]] = []
        self.steps: list[DistillationStep] = []
        self.before: list[dict[str, Tensor]] = []
        original = Distillation.on_fit_start

        def noting(module: Distillation) -> None:
            original(module)
            self.steps.append(module.step)
            teacher = module.step.teacher
            self.before.append({} if teacher is None else {k: v.clone() for k, v in teacher.state_dict().items()})

        monkeypatch.setattr(Distillation, "on_fit_start", noting)


@pytest.mark.slow
def test_learning_without_forgetting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LwF: the first task has its labels alone; the second one the first model too, from its files."""
    watched = Watched(monkeypatch)
    learner = {
        "strategy": {"type": "sequential"},
        "teacher": {"networks": [PREVIOUS]},
        "objectives": [{"type": "ce", "among": "present"}, {"type": "kd", "temperature": 2}, {"type": "pooled"}],
    }
    settings = stream(tmp_path, **learner)
    folder = learn_only(settings)
    first, second = watched.steps
    assert first.teacher is None and first.term_names == ["ce"]
    assert second.teacher is not None and second.term_names == ["ce", "kd", "pooled"]
    [old] = second.teacher.networks
    part = create_network(NetworkSettings(**settings.student.network.model_dump()), 2)
    written = load_delta(folder / "task-1/student/delta", part.model).state_dict()
    assert old.state_dict().keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in old.state_dict().items())
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exported = load_delta(folder / "task-1/student/delta", part.model)
    with torch.no_grad():
        live = second.student.model.eval()(image)[:, :2]
        assert not torch.allclose(exported(image), live, atol=1e-3)
        torch.testing.assert_close(old.eval()(image), exported(image), atol=1e-6, rtol=1e-5)
    after = second.teacher.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in watched.before[1].items()), "it stays frozen"
    assert any("running_mean" in name for name in after)
    map_ = second.teacher.maps[0]
    assert map_ is not None and map_.known_S.tolist() == [0, 1], "of four classes, it knows those of the first task"

    # Its outputs from a cache, whose key has its weights, give the same bits.
    cache = {"cache": {"logits": "full", "pooled": True, "dtype": "float32"}}
    cached = learn_only(stream(tmp_path / "cached", **{**learner, "teacher": {"networks": [PREVIOUS], **cache}}))
    assert len([*(tmp_path / "cached/teachers").iterdir()]) == 1
    ended = [
        VerifiedCheckpointIO().load_checkpoint(base / "task-2/student/fit/result.ckpt")["student"]
        for base in (folder, cached)
    ]
    assert_bit_equal(*ended)


@pytest.mark.slow
def test_an_ordinary_teacher_beside_the_previous_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that read the teacher stay in the first task, with the ordinary teacher alone."""
    watched = Watched(monkeypatch)
    original = LearnTask.run

    def run(self: LearnTask, context: RunContext, folder: Path) -> Any:
        if self.task.name == "task-2":  # what was learned is another model, in the file alone
            rewrite_delta(folder.parents[1] / "task-1/student/delta", 2.0)
        return original(self, context, folder)

    monkeypatch.setattr(LearnTask, "run", run)
    ordinary = {**network(tmp_path, "test_resnet"), "labels": {"a": 0, "b": 1}}
    folder = learn_only(
        stream(
            tmp_path,
            strategy={"type": "sequential"},
            teacher={"networks": [PREVIOUS, {**ordinary, "weight": 3}], "weighting": {"type": "confidence"}},
            objectives=[{"type": "kd"}],
        )
    )
    assert [step.term_names for step in watched.steps] == [["kd"], ["kd"]]
    of_first, of_second = (step.teacher for step in watched.steps)
    assert of_first is not None and of_second is not None
    assert (of_first.weights, of_first.weighting.type) == ([1.0], "fixed")
    assert (of_second.weights, of_second.weighting.type) == ([0.25, 0.75], "confidence")
    assert [len(step.teacher.networks) for step in watched.steps if step.teacher] == [1, 2]
    head = of_second.networks[0].get_classifier().weight  # type: ignore[operator, union-attr]
    learned = VerifiedCheckpointIO().load_checkpoint(folder / "task-1/student/fit/result.ckpt")["student"]
    assert torch.equal(head.cpu(), 2 * learned["model.classifier.weight"]), "the old model comes from its file"
