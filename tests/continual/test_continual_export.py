"""An exported stream serves what the run measured, from its files alone, and refuses damaged ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_stream import learn, stream

from augment.chain import eval_view
from distill.config import read_run
from distill.continual.open_stream import open_stream
from distill.continual.scores import TaskScores
from distill.continual.serve import ServedBank, bank_logits, open_bank
from distill.continual.task import Task
from distill.export.checksummed import ExportError
from distill.run.context import make_data

pytestmark = pytest.mark.slow
INFERENCE = [{"type": "ncm"}, {"type": "entropy"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two tasks, verified in a process of its own."""
    settings = stream(tmp_path_factory.mktemp("bank"), inference=INFERENCE, controls={"heads": False})
    return learn(settings, apart=True)


def images_of(run: Path, task: Task, bank: ServedBank) -> tuple[Tensor, Tensor]:
    """The test images of a task as the bank reads them, and their classes as indices into the bank's."""
    settings, _ = read_run(run)
    whole = make_data(settings)
    data = task.data(whole, task.classes, settings.seed)
    batches = list(data.eval_loader("test", False, bank.input))
    views = torch.cat([eval_view(batch.images, bank.input) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return views, torch.tensor([bank.classes.index(name) for name in task.classes])[labels]


def scores(run: Path, stage: str) -> TaskScores:
    content = json.loads((run / stage / "scores.json").read_text())
    return TaskScores.model_validate(content.get("scores", content) if stage.endswith("-test") else content)


def test_a_bank_serves_what_the_run_measured(run: Path) -> None:
    bank = open_bank(run / "export/bank")
    measured = scores(run, "task-2/student-test").scores
    for task in open_stream(read_run(run)[0]):  # type: ignore[arg-type]
        images, labels = images_of(run, task, bank)
        correct = int((bank(images, task=task.name).argmax(1) == labels).sum())
        assert correct == measured["student"]["task"][task.name].correct
        for rule in ("ncm", "entropy"):
            correct = int((bank(images, infer=rule).argmax(1) == labels).sum())
            assert correct == measured[f"student + {rule}"]["class"][task.name].correct, rule


def test_each_image_is_served_for_itself(run: Path) -> None:
    bank = open_bank(run / "export/bank")
    tasks = open_stream(read_run(run)[0])  # type: ignore[arg-type]
    images = torch.cat([images_of(run, task, bank)[0][:8] for task in tasks])
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    whole = bank_logits(bank.train(), images)
    for row in range(len(images)):
        alone = bank_logits(bank, images[row : row + 1])
        for name, logits in alone.items():
            torch.testing.assert_close(logits[0], whole[name][row], rtol=1e-4, atol=1e-5)
            assert logits.argmax() == whole[name][row].argmax()
    assert all(torch.equal(before[name], tensor) for name, tensor in bank.state_dict().items())
    assert set(whole) == {"task/task-1", "task/task-2", "rule/ncm", "rule/entropy"}


def test_what_cannot_be_served_is_refused(run: Path, tmp_path: Path) -> None:
    bank = open_bank(run / "export/bank")
    images = torch.zeros(1, 3, *bank.input.size)
    with pytest.raises(ExportError, match="no task 'task-9'; there are task-1, task-2"):
        bank(images, task="task-9")
    with pytest.raises(ExportError, match="no rule 'mahalanobis' infers the task, there are: ncm, entropy"):
        bank(images, infer="mahalanobis")
    with pytest.raises(ExportError, match="no rule 'max_logit' infers the task; there are ncm, entropy"):
        open_bank(run / "export/bank", infer="max_logit")
    damaged = tmp_path / "bank"
    for name in ("task-2/delta.safetensors", "sums-ncm.safetensors", "stream.json"):
        shutil.copytree(run / "export/bank", damaged)
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 2] ^= 1
        (damaged / name).write_bytes(bytes(data))
        with pytest.raises(ExportError, match=name.rpartition("/")[2]):
            open_bank(damaged)
        shutil.rmtree(damaged)


@pytest.mark.parametrize("head", [{"type": "slda"}, {"type": "random_ridge", "name": "wide", "width": 300}])
def test_a_closed_form_head_is_served_as_a_timm_folder(head: dict[str, Any], tmp_path: Path) -> None:
    heads = [head, {"type": "random_ridge", "width": 100}]
    settings = stream(tmp_path, strategy={"type": "first_task"}, heads=heads, controls={"heads": False})
    run = learn(settings)
    name = head.get("name", head["type"])
    bank = open_bank(run / "export/bank")
    assert (run / "export/bank/model/config.json").is_file()
    measured = scores(run, "task-2/adapted-heads").scores[f"student + {name}"]
    assert set(scores(run, "task-2/heads").scores) == {name, "random_ridge"}
    for task in open_stream(settings):
        images, labels = images_of(run, task, bank)
        assert int((bank(images).argmax(1) == labels).sum()) == measured["class"][task.name].correct
        assert int((bank(images, task=task.name).argmax(1) == labels).sum()) == measured["task"][task.name].correct
