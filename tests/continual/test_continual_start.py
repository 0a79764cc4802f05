"""``student.start``: training begins at the deltas of a delta file, and at the rows of its head of the same classes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_stream import stream
from toy_training import Blobs, experiment, network

from augment.base import UserError
from distill.export.checksummed import ExportError
from distill.export.delta.io import save_delta
from distill.export.manifest import Preprocessing
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.report.items import Note
from distill.run.context import RunContext
from distill.run.prepare import LOGITS, StudentSpec, load_prepared, trial_student
from distill.run.start import start_note
from distill.stages.learn_task import LearnTask
from distill.stages.train_student import TrainStudent
from distill.training.fit import RESULT
from distill.training.signals import StopSignal
from distill.yaml_tree import ConfigError


class Renamed(Blobs):
    """The toy's images; two of the class names are others."""

    class Settings(Blobs.Settings):
        pass

    def __init__(self, settings: Blobs.Settings):
        super().__init__(settings)
        self.classes = tuple("xbcy")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def given(root: Path) -> Student:
    """A student whose deltas are not zero, in the delta file ``root/delta`` with the classes a, b, c, d."""
    settings = experiment(root).student
    student = StudentSpec(settings, 0, 4).build()
    generator = torch.Generator().manual_seed(0)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    prepared = Preprocessing.of(student.model, student.input.size)
    origin = student.network.origin
    save_delta(root / "delta", student.model, student.backbone, origin=origin, labels="abcd", preprocessing=prepared)
    return student


def started(root: Path, **student: Any) -> dict[str, Any]:
    """Changes of the toy experiment; network and deltas come from the file."""
    changes: dict[str, Any] = {"teacher": None, "objectives": [{"type": "ce"}], "student": student}
    return changes | {"training": {"epochs": 1, "ema": None, "optimizer": {"lr": 1e-12}}}


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    with StopSignal() as made:
        yield made


def assert_starts(student: Student, given: Student, rows: dict[int, int]) -> None:
    own, old = student.own_state(), given.own_state()
    head = student.model.get_classifier()
    for name in own.keys() & old.keys():
        if "parametrizations" in name:
            torch.testing.assert_close(own[name], old[name], rtol=0, atol=1e-6)
    for mine, known in rows.items():
        torch.testing.assert_close(head.weight[mine], given.model.get_classifier().weight[known], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_training_starts_from_deltas_and_rows_of_the_head(root: Path, given: Student, stop: StopSignal) -> None:
    plain = experiment(root, **started(root, start=str(root / "delta"), deltas=[{"type": "low_rank", "rank": 2}]))
    tree = plain.model_dump(mode="json")
    del tree["student"]["deltas"], tree["student"]["network"]
    tree["data"]["source"]["type"] = f"{__name__}:Renamed"
    settings = type(plain).model_validate(tree)
    assert settings.student.network.model == plain.student.network.model, "filled in from the file"
    assert [delta.type for delta in settings.student.deltas] == ["low_rank"]
    context = RunContext.of(settings, stop)
    stage = next(stage for stage in settings.plan() if isinstance(stage, TrainStudent))
    stage.check_files()
    folder = root / "fit"
    trained = stage.run(context, folder)
    assert (folder / RESULT).is_file()
    assert_starts(trained.student, given, {1: 1, 2: 2})
    assert_starts(load_prepared(trained.spec, folder), given, {1: 1, 2: 2})
    others = trained.student.model.get_classifier().weight[[0, 3]] - given.model.get_classifier().weight[[0, 3]]
    assert others.abs().max() > 1e-3, "rows of other classes are new"
    key = stage.key(context)
    assert len(key["start"]) == 64
    notes = [item.text for item in stage.report(context, trained) if isinstance(item, Note)]
    assert f"student: head: 2 of 4 classes from {root / 'delta'}, the others are new" in notes
    assert "start" not in replace(stage, student=stage.student.model_copy(update={"start": None})).key(context)


@pytest.mark.slow
def test_a_task_of_a_stream_starts_from_it(root: Path, given: Student, stop: StopSignal, tmp_path: Path) -> None:
    tree = {"start": str(root / "delta"), "network": network(root, "test_efficientnet")}
    training = {"optimizer": {"lr": 1e-12}}
    settings = stream(tmp_path, strategy={"type": "bank"}, student=tree, training=training)
    stages = [stage for stage in settings.plan() if isinstance(stage, LearnTask)]
    context = RunContext.of(settings, stop)
    learned = stages[1].task
    folder = tmp_path / "task"
    made = stages[0].run(context, folder)
    notes = [item.text for item in stages[0].report(context, made) if isinstance(item, Note)]
    assert f"{stages[0].name}: head: 2 of 2 classes from {root / 'delta'}" in notes
    assert learned.classes == ("c", "d") and stages[0].task.classes == ("a", "b")
    spec = StudentSpec(stages[0].student, 0, 2)
    assert_starts(load_prepared(spec, folder / "fit"), given, {0: 0, 1: 1})


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"start": "nowhere"}, r"(?s)student\.start.*nowhere holds no delta file"),
        ({"start": "delta", "train": "full", "deltas": []}, "train: full has no deltas"),
    ],
)
def test_configs_that_are_refused(student: dict[str, Any], message: str, root: Path, given: Student) -> None:
    plain = experiment(root, **started(root)).model_dump(mode="json")
    own = {**plain["student"], **student, "start": str(root / student["start"])}
    if "train" not in student:
        del own["deltas"]
    with pytest.raises((ConfigError, ValueError), match=message):
        type(experiment(root)).model_validate({**plain, "student": own})


def test_why_a_head_is_new_is_said(root: Path, given: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(root).student.model_copy(update={"start": root / "delta"})
    assert start_note(settings, "wxyz", given.model).startswith("head: 0 of 4 classes from ")
    with monkeypatch.context() as patched:
        patched.setattr(given.model, "get_classifier", torch.nn.Identity)
        assert "it is not one linear layer" in start_note(settings, "abcd", given.model)
    prepared = Preprocessing.of(given.model, given.input.size)
    save_delta(tmp_path, given.model, given.backbone, origin=given.network.origin, preprocessing=prepared)
    unnamed = settings.model_copy(update={"start": tmp_path})
    assert "the file has no names of classes" in start_note(unnamed, "abcd", given.model)


def test_statistics_that_no_file_has_are_refused(root: Path, given: Student) -> None:
    deltas = [{"type": "statistics"}, {"type": "low_rank", "rank": 2}]
    with pytest.raises(ConfigError, match=r"student\.deltas\.0: .*nothing measures others"):
        experiment(root, **started(root, start=str(root / "delta"), deltas=deltas))


def test_other_deltas_and_backbones_are_refused(root: Path, given: Student) -> None:
    settings = experiment(root).student.model_copy(update={"start": root / "delta"})

    def refused(message: str, **changes: Any) -> None:
        tree = settings.model_dump(mode="json") | changes
        with pytest.raises(UserError, match=message):
            trial_student(StudentSpec(StudentSettings.model_validate(tree), 0, 4, LOGITS))

    refused("of type 'low_rank' where student.deltas names 'bias'", deltas=[{"type": "bias"}])
    refused("has 1 groups of deltas, and student.deltas names more", deltas=[{"type": "low_rank"}, {"type": "bias"}])
    refused("has 1 groups of deltas, and student.deltas names 0", deltas=[])
    refused("backbone", network=network(root, "test_efficientnet", seed=1))
    assert issubclass(ExportError, UserError)
