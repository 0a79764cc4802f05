"""Outputs of a bank's networks are computed once for an image, and only where a score reads them."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor
from toy_stream import stream

from distill.continual.inference.base import TaskInference
from distill.continual.inference.entropy import EntropyTask
from distill.continual.known_outputs import absent, at_ids, with_more
from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.open_stream import open_stream
from distill.continual.task import Task
from distill.experiments.continual import ContinualExperiment
from distill.models.network import Network, create_network
from distill.run.context import RunContext
from distill.run.stage import Ref
from distill.stages.evaluate_task import EvaluateTask, TaskEvaluation
from distill.stages.extract_features import TaskFeatures
from distill.training.evaluate import Predictions
from distill.training.signals import StopSignal


class ByColumn(TaskInference):
    """The task of the largest feature among the first ones."""

    class Settings(TaskInference.Settings):
        type: Literal["by_column"] = "by_column"

    reads: ClassVar[Literal["features", "logits"]] = "features"

    def _of_features(self, features_ND: Tensor) -> Tensor:
        return features_ND[:, : len(self.tasks)]


def rows(ids: list[int], scale: float = 1.0) -> Predictions:
    return Predictions(scale * torch.tensor(ids)[:, None].float(), torch.zeros(len(ids)).long(), torch.tensor(ids))


def test_rows_are_joined_by_id() -> None:
    known = {("p", "t"): rows([2, 5, 9])}
    assert absent(known["p", "t"], torch.tensor([5, 7])).tolist() == [7]
    assert absent(None, torch.tensor([5])).tolist() == [5]
    more = with_more(known, {("p", "t"): rows([5, 7], scale=10), ("q", "t"): rows([1])})
    assert more["p", "t"].ids.tolist() == [2, 5, 7, 9]
    assert more["p", "t"].logits[:, 0].tolist() == [2, 50, 70, 9], "what is made again replaces what was known"
    assert at_ids(more["p", "t"], torch.tensor([9, 2])).logits[:, 0].tolist() == [9, 2]
    assert len(known) == 1 and len(more) == 2


class Counted:
    """A bank of random networks, which counts the images that each of them is given."""

    def __init__(self, settings: ContinualExperiment, tasks: list[Task]):
        self.images: list[tuple[str, int]] = []
        self.networks = {}
        for number, task in enumerate(tasks):
            torch.manual_seed(number)
            self.networks[task.name] = create_network(settings.student.network, len(task.classes))
            self.networks[task.name].model.register_forward_pre_hook(
                lambda _, given, name=task.name: self.images.append((name, len(given[0])))
            )
        self.parts = [
            LearnedNetwork(task.name, task.classes, lambda name=task.name: self.load(name), 0, 0)  # type: ignore[misc]
            for task in tasks
        ]

    def load(self, name: str) -> Network:
        return self.networks[name]

    def after(self, count: int, folder: Path) -> LearnedTask:
        parts = tuple(self.parts[:count])
        classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
        return LearnedTask(parts[-1].name, classes, parts, folder, folder)


def evaluations(tmp_path: Path, kind: dict[str, object], rule: TaskInference.Settings) -> tuple[Counted, list[int]]:
    """Evaluate a stream stage by stage, and compare with all outputs of all networks; returns the images of tasks."""
    settings = stream(tmp_path, stream=kind)
    tasks = list(open_stream(settings))
    bank = Counted(settings, tasks)
    setting = "domain" if kind["type"] == "images" else "class"
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        images: list[int] = []
        for number, task in enumerate(tasks):
            data = task.data(context.data, task.classes, 0)
            ids = torch.from_numpy(data.subset("test").keys).sort().values
            features = torch.randn(len(ids), len(tasks), generator=torch.Generator().manual_seed(number))
            own = Predictions(features, torch.zeros_like(ids), ids)
            context.outputs[f"{task.name}/features"] = TaskFeatures(task, {"test": own}, 0.0)
            images.append(len(ids))
        previous = None
        for number in range(1, len(tasks) + 1):
            learned = bank.after(number, tmp_path)
            context.outputs["learner"] = learned
            stage = EvaluateTask(
                f"test-{number}",
                "student",
                tuple(tasks[:number]),
                Ref("learner", LearnedTask),
                tuple(Ref(f"{task.name}/features", TaskFeatures) for task in tasks[:number]),
                None,
                previous,
                (rule,),
                setting,  # type: ignore[arg-type]
                again=number == len(tasks),
            )
            folder = tmp_path / f"test-{number}"
            folder.mkdir()
            output = stage.run(context, folder)
            assert_equal(stage.load(context, folder), output)
            context.outputs[stage.name] = output
            previous = stage.output
            made, bank.images = bank.images, []
            alone = EvaluateTask(**{**vars(stage), "previous": None, "inference": (EntropyTask.Settings(), rule)})
            fresh = alone.run(context, tmp_path)  # entropy reads every output of every network
            assert fresh.scores.scores["student"] == output.scores.scores["student"]
            name = f"student + {rule.type}"
            assert fresh.scores.scores[name] == output.scores.scores[name]
            bank.images = made
        [check] = stage.report(context, output)
        assert check.passed and f"{len(tasks) - 1} pairs" in check.detail  # type: ignore[union-attr]
    return bank, images


def assert_equal(first: TaskEvaluation, second: TaskEvaluation) -> None:
    assert first.logits.keys() == second.logits.keys() and first.scores == second.scores
    for pair, predictions in first.logits.items():
        assert torch.equal(predictions.ids, second.logits[pair].ids)
        assert torch.equal(predictions.logits, second.logits[pair].logits)


@pytest.mark.parametrize(
    "kind", [{"type": "classes", "count": 2}, {"type": "images", "count": 3}], ids=["class", "domain"]
)
def test_only_what_a_rule_gives_to_a_network_is_computed(kind: dict[str, object], tmp_path: Path) -> None:
    bank, images = evaluations(tmp_path, kind, ByColumn.Settings())
    assert sum(count for _, count in bank.images) < len(images) * sum(images)


def test_a_rule_that_reads_logits_reads_every_image_once(tmp_path: Path) -> None:
    bank, images = evaluations(tmp_path, {"type": "classes", "count": 2}, EntropyTask.Settings())
    again = images[0]  # that of the earlier task, after the last one
    assert sum(count for _, count in bank.images) == len(images) * sum(images) + again
