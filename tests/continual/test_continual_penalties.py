"""Regularizers in the loss of a stream: carried from task to task, exact after a stop in a task or between two."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from toy_stream import learn_only, stream, stream_tree
from toy_training import assert_bit_equal

import distill
import distill.stages.learn_task as stage
from augment.views import InputSpec
from distill.config import validate_tree
from distill.continual.memory.keyed import keyed_order
from distill.continual.open_stream import open_stream
from distill.continual.regularizers.carried import FILE, TrainingViews, build, close
from distill.continual.regularizers.ewc import EWC
from distill.continual.regularizers.l2 import L2
from distill.report.curves import read_curves
from distill.run.context import RunContext
from distill.stages.learn_task import LearnTask
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import StopSignal
from distill.training.step import DistillationStep
from distill.yaml_tree import ConfigError

PENALTIES = [{"type": "ewc", "weight": 50, "samples": 4}, {"type": "si", "weight": 0.5}, {"type": "l2", "weight": 0.1}]
TRAINING = {"epochs": 2, "checkpoint_minutes": 1e-6, "log_every": 1, "clip_norm": 0.01}


class StoppedError(RuntimeError):
    pass


def test_other_weights_in_every_task_are_an_error(tmp_path: Path) -> None:
    for strategy in ("bank", "merge_and_go", "anew"):
        with pytest.raises(ConfigError, match=f"regularizers: strategy {strategy} does not train the same weights"):
            validate_tree(stream_tree(tmp_path, strategy={"type": strategy}, regularizers=PENALTIES), "stream")


def test_there_is_nothing_to_hold_without_ends_of_tasks(tmp_path: Path) -> None:
    plain = stream_tree(tmp_path, strategy={"type": "sequential"}, regularizers=PENALTIES)
    plain["stream"] = {"type": "online", "count": 2}
    with pytest.raises(ConfigError, match="regularizers: stream online does not tell where a task ends"):
        validate_tree(plain, "stream")


def test_two_of_a_type_have_names_of_their_own() -> None:
    assert list(build([EWC.Settings(), L2.Settings(), EWC.Settings(weight=2)])) == ["ewc", "l2", "ewc-2"]


class Tiny(torch.nn.Module):
    """A student of mean colors, whose classes are equally likely."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.input = torch.nn.Linear(3, 4), InputSpec((8, 8))
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.model(views.mean((2, 3)))


def test_what_a_task_is_closed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are in keyed order, and the labels among the classes that the cross-entropy is among."""
    given: list[bool] = []
    for among in ("all", "present"):
        objectives = [{"type": "ce", "among": among}]
        own = {"strategy": {"type": "sequential"}, "regularizers": [{"type": "ewc"}], "objectives": objectives}
        settings = stream(tmp_path, **own)
        task = open_stream(settings)[1]
        with StopSignal() as stop:
            context = RunContext.of(settings, stop)
        monkeypatch.setattr(stage, "close", lambda *arguments: given.append(arguments[3]) or {})
        learner = next(own for own in settings.plan() if isinstance(own, LearnTask))
        fit, spec = SimpleNamespace(classes=tuple("abcd"), seed=0, folder=tmp_path), SimpleNamespace(regularizers={})
        learner._close_regularizers(context, fit, spec, Tiny())  # type: ignore[arg-type]
    assert given == [False, True]
    context = replace(context, data=task.data(context.data, tuple("abcd"), 0))
    train = context.data.subset("train")
    keys = torch.cat([ids for _, ids in TrainingViews(InputSpec((8, 8)), context)])
    assert sorted(keys.tolist()) == sorted(train.keys.tolist()) != train.keys.tolist()
    hashed = keyed_order(torch.from_numpy(train.keys), context.data.seed)
    assert torch.equal(keys, torch.from_numpy(train.keys)[hashed]), "the first ones are a sample of all"
    for present in (False, True):
        ewc = EWC(EWC.Settings(samples=6))
        close({"ewc": ewc}, Tiny(), context, present)  # type: ignore[arg-type]
        assert (ewc.importance["weight"].sum(1) > 0).tolist() == [not present, not present, True, True]


def trained(folder: Path) -> list[dict[str, Any]]:
    """Weights and regularizers after each task."""
    return [
        VerifiedCheckpointIO().load_checkpoint(folder / task / "student/fit/result.ckpt")["student"]
        | safetensors.torch.load((folder / task / "student" / FILE).read_bytes())
        for task in ("task-1", "task-2")
    ]


@pytest.mark.slow
def test_a_stream_with_regularizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"strategy": {"type": "sequential"}, "regularizers": PENALTIES, "training": TRAINING}
    folder = learn_only(stream(tmp_path / "straight", **changes))
    expected = trained(folder)
    for number, of_task in enumerate(expected):
        log = read_curves(folder / f"task-{number + 1}/student/fit/log.csv")
        for name in ("ewc", "si", "l2"):
            values = log[f"loss/{name}"].values
            assert len(values) >= 4 and (max(values) > 0) == (number == 1), "there is nothing to hold in the first task"
        importance = {name: t for name, t in of_task.items() if name.startswith(("ewc/importance", "si/importance"))}
        assert importance and all((t >= 0).all() for t in importance.values())
        assert any(t.any() for t in importance.values()) and not any("/path." in name for name in of_task)
    kept = safetensors.torch.load((folder / "task-2/student" / FILE).read_bytes())
    size = sum(tensor.numel() for tensor in kept.values())
    assert size < 3 * 2 * 7_000, "anchors and importances of the trained parameters alone"

    # Stopped in the second task, then between its training and its close: the same bits as without a stop.
    again, steps, original = stream(tmp_path / "stopped", **changes), 0, DistillationStep.forward

    def stopping(this: DistillationStep, *arguments: Any, **more: Any) -> Any:
        nonlocal steps
        steps += bool(this.regularizers["ewc"].anchors)  # type: ignore[attr-defined]
        if steps == 3:
            raise StoppedError
        return original(this, *arguments, **more)

    def failing(*arguments: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(DistillationStep, "forward", stopping)
        with pytest.raises(StoppedError):
            learn_only(again)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "save", failing)
        with pytest.raises(StoppedError):
            learn_only(again, resume=True)
    [run] = (tmp_path / "stopped").glob("stream*")
    assert (run / "task-2/student/fit/fit.json").is_file() and not (run / "task-2/student" / FILE).is_file()
    learn_only(again, resume=True)
    for actual, straight in zip(trained(run), expected):
        assert_bit_equal(actual, straight)


class Noting(L2):
    reads_gradients = True
    seen: dict[str, torch.Tensor] | None = None

    def after_step(self, gradients: Any = None) -> None:
        self.seen = gradients


def test_gradients_are_those_of_the_task_alone() -> None:
    """A regularizer reads them before clipping, and without the pull of any."""
    student = distill.create_student("embedded:tf_efficientnet_lite0", "bias", size=32)
    parameters = {name: p for name, p in student.model.named_parameters() if p.requires_grad}
    l2 = Noting(L2.Settings(weight=3.0))
    l2.prepare(student, parameters, [])
    for parameter in parameters.values():
        parameter.data += 1
    augment = distill.create_augment(student=student, recipe="weak")
    plain = distill.create_step(student, None, ["ce"], augment, steps_per_epoch=10)
    step = DistillationStep(student, None, plain.terms, augment, plain.settings, 10, regularizers={"l2": l2})
    assert step.term_names == ["ce", "l2"]
    images, ids = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8), torch.tensor([11, 12])
    output = step(images, ids, torch.tensor([3, 7]), epoch=0, step=0)
    assert output.terms[1].item() == pytest.approx(1.5 * sum(p.numel() for p in parameters.values()), rel=1e-4)
    assert output.loss.item() == pytest.approx(output.terms.sum().item())
    output.loss.backward()
    step.keep_gradients()
    step.after_update(0)
    assert l2.seen is not None and l2.seen.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(l2.seen[name], parameter.grad - 3.0)
