"""Stages of a run that takes over the learner of a finished stream: its files, its sums, and its scores."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.continual.bank_folder import FOLDED, file_hashes
from distill.continual.errors import ContinualError
from distill.continual.fitted_heads import FittedHeads
from distill.continual.heads.shared import HeadSums
from distill.continual.learned import LearnedTask
from distill.continual.scores import TaskScores
from distill.continual.serve import BankManifest, read_bank
from distill.continual.strategies.base import Strategy
from distill.continual.task import Task
from distill.continual.task_result import restored
from distill.files import write_atomic
from distill.models.settings import StudentSettings
from distill.report.items import Item, Note
from distill.run.context import RunContext
from distill.run.folder import is_first_rank, read_tree
from distill.run.stage import Stage
from distill.stages.export_stream import BANK
from distill.stages.stream_controls import ControlScores

FILES, SCORES = "files.json", "scores.json"
LEARNER, HEADS, ADAPTED, SCORED = "continued/student", "continued/heads", "continued/adapted-heads", "continued/scores"
"""Names of these stages."""
SKIPPED = ("step-*.ckpt", "events.out.tfevents*", "stage.json", ".*")


def read_exported(run: Path) -> BankManifest:
    """The manifest of a finished stream's export, all of whose files are checked by SHA-256."""
    return read_bank(run / "export" / BANK)


def earlier_tasks(run: Path) -> tuple[Task, ...]:
    """The tasks of a finished stream, without any sample."""
    return tuple(Task(task.name, task.classes, {}) for task in read_exported(run).tasks)


@dataclass(frozen=True)
class ContinuedRun(Stage[LearnedTask]):
    """Takes over the learner of a finished stream: copies the files of its tasks, and checks them by SHA-256.

    Delta files and whole networks must be those of the run's export.

    Args:
        source: folder of the finished run.
        strategy: of the stream that goes on; its type must be that of the run.
        student: of the stream that goes on.
    """

    source: Path
    strategy: Strategy.Settings
    student: StudentSettings

    def check(self, context: RunContext) -> LearnedTask:
        """Read the learner where it is. The stages that follow are tried with its newest network alone."""
        before = read_tree(self.source).get("strategy", {}).get("type")
        if before != self.strategy.type:
            raise ContinualError(f"strategy.type: {self.source} was learned with {before}, and goes on with that")
        learned = self._learned(context, lambda task: _folder_in(self.source, task.name))
        learned.newest.load()
        return replace(learned, parts=learned.parts[-1:])

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"files": read_exported(self.source).files, "strategy": self.strategy.model_dump(mode="json")}

    def run(self, context: RunContext, folder: Path) -> LearnedTask:
        if is_first_rank():
            for task in earlier_tasks(self.source):
                shutil.rmtree(folder / task.name, ignore_errors=True)
                skipped = shutil.ignore_patterns(*SKIPPED)
                shutil.copytree(_folder_in(self.source, task.name), folder / task.name, ignore=skipped)
            self._check_copies(folder)
            write_atomic(folder / FILES, json.dumps(file_hashes(folder), indent=2).encode())
        return self._learned(context, lambda task: folder / task.name)

    def load(self, context: RunContext, folder: Path) -> LearnedTask:
        for name, sha256 in json.loads((folder / FILES).read_text()).items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
                raise ContinualError(f"{folder / name}: damaged, its SHA-256 is not the one in {FILES}")
        return self._learned(context, lambda task: folder / task.name)

    def report(self, context: RunContext, output: LearnedTask) -> Iterable[Item]:
        names = ", ".join(task.name for task in earlier_tasks(self.source))
        yield Note(
            text=f"goes on with {self.source.name}, whose images are not read: where all classes compete, the numbers "
            f"are those of the new tasks' images alone, and {names} not measured; 'distill evaluate RUN --old-test' "
            "measures them, if the old source is still there"
        )

    def _learned(self, context: RunContext, folder_of: Any) -> LearnedTask:
        learned: LearnedTask | None = None
        for task in earlier_tasks(self.source):
            learned = restored(task, self.strategy, self.student, context.seed, folder_of(task), learned)
        assert learned is not None
        return learned

    def _check_copies(self, folder: Path) -> None:
        """Compare the networks' files with those of the export, whose SHA-256 its manifest has."""
        copied = set(file_hashes(folder).values())
        parts = {part.folder for part in read_exported(self.source).parts if part.folder != FOLDED}
        for name, sha256 in read_exported(self.source).files.items():
            if name.partition("/")[0] in parts and sha256 not in copied:
                raise ContinualError(f"{self.source}: the file that was exported as {name} is damaged or missing there")


@dataclass(frozen=True)
class ContinuedHeads(Stage[FittedHeads]):
    """Takes over the sums of a finished stream, which later tasks are added to.

    Args:
        source: folder of the finished run.
        part: ``heads`` of the backbone, or ``adapted-heads`` of the student.
    """

    source: Path
    part: str = "heads"

    def check(self, context: RunContext) -> None:
        if not self._before.is_dir():
            raise ContinualError(f"heads: {self.source} has no sums to add to ({self._before}); set heads to []")

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"files": file_hashes(self._before)}

    def run(self, context: RunContext, folder: Path) -> FittedHeads:
        if is_first_rank():
            shutil.copytree(self._before, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*SKIPPED))
        return self.load(context, folder)

    def load(self, context: RunContext, folder: Path) -> FittedHeads:
        scores = TaskScores.model_validate_json((folder / SCORES).read_text())
        nothing = HeadSums((), 0)  # the heads of the next task read the files
        return FittedHeads(nothing, nothing, scores, folder, nothing)

    @property
    def _before(self) -> Path:
        return self.source / earlier_tasks(self.source)[-1].name / self.part


@dataclass(frozen=True)
class ContinuedScores(Stage[ControlScores]):
    """Accuracies of a finished stream that stay true: those of its tasks where each has a network that no task changes.

    They are the task-incremental ones. Where all classes compete, new classes change them, and the images are gone.

    Args:
        source: folder of the finished run.
        tasks: names of the tasks that follow.
        unchanged: whether each task has a network of its own, whose files :class:`ContinuedRun` has checked.
    """

    source: Path
    tasks: tuple[str, ...]
    unchanged: bool

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"unchanged": self.unchanged, "tasks": self.tasks, "files": read_exported(self.source).files}

    def run(self, context: RunContext, folder: Path) -> ControlScores:
        stages = self._of_source() if self.unchanged else []
        if stages:
            last = stages[-1].scores
            stages += [TaskScores(task=name, scores=last) for name in self.tasks]
        if is_first_rank():
            write_atomic(folder / SCORES, json.dumps([stage.model_dump(mode="json") for stage in stages]).encode())
        return ControlScores(tuple(stages))

    def load(self, context: RunContext, folder: Path) -> ControlScores:
        content = json.loads((folder / SCORES).read_text())
        return ControlScores(tuple(TaskScores.model_validate(stage) for stage in content))

    def _of_source(self) -> list[TaskScores]:
        """After each task of the run, how many images of each task its own network had right."""
        stages: list[TaskScores] = []
        inherited = self.source / SCORED / SCORES
        before = json.loads(inherited.read_text()) if inherited.is_file() else []
        of_task = {stage["task"]: TaskScores.model_validate(stage) for stage in before}
        for task in earlier_tasks(self.source):
            path = self.source / task.name / "student-test" / SCORES
            own = {**of_task[task.name].scores["student"]["task"]} if task.name in of_task else {}
            if path.is_file():
                measured = TaskScores.model_validate(json.loads(path.read_text())["scores"])
                own |= measured.scores["student"]["task"]
                sizes = {"served": measured.served, "kept": measured.kept, "peak": measured.peak}
                kept = {name: {"student": of["student"]} for name, of in sizes.items() if "student" in of}
                stages.append(
                    TaskScores(
                        task=task.name,
                        scores={"student": {"task": own}},
                        seconds={"student": measured.seconds["student"]},
                        backbone=measured.backbone,
                        **kept,
                    )
                )
            else:
                stages.append(of_task[task.name])
        return stages


def _folder_in(run: Path, task: str) -> Path:
    """The folder of what a run learned of a task: its own, or taken over from an earlier run."""
    inherited = run / LEARNER / task
    return inherited if inherited.is_dir() else run / task / "student"
