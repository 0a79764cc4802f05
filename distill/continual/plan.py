"""The stages of a stream: for each task learning, features, heads and evaluation; then controls and summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.continual.scores import Setting
from distill.continual.strategies.bank import Bank
from distill.continual.strategies.base import Strategy
from distill.continual.strategies.go_on import GoOn
from distill.continual.task import Task, classes_are_equal
from distill.models.settings import StudentSettings
from distill.objectives.base import Objective
from distill.run.stage import Stage
from distill.stages.evaluate_task import EvaluateTask
from distill.stages.export_stream import ExportStream
from distill.stages.extract_features import ExtractFeatures
from distill.stages.fit_heads import FitHeads
from distill.stages.learn_task import LearnTask
from distill.stages.report import WriteReport
from distill.stages.stream_controls import StreamControls
from distill.stages.summarize_stream import SummarizeStream

if TYPE_CHECKING:
    from distill.experiments.continual import ContinualExperiment


def plan_stream(experiment: ContinualExperiment, tasks: Sequence[Task]) -> list[Stage]:
    """The stages of an experiment.

    The stages of a task come before those of the next one, and refer to no later one.

    Args:
        experiment: the config.
        tasks: of its stream, in their order.

    Returns:
        The stages, in an order in which they can run.
    """
    plan = _Plan(experiment, tasks)
    stages: list[Stage] = [*plan.teachers]
    for number in range(len(tasks)):
        stages += plan.task(number)
    return stages + plan.end()


class _Plan:
    """The stages so far, by what they are."""

    def __init__(self, experiment: ContinualExperiment, tasks: Sequence[Task]):
        self.experiment, self.tasks = experiment, tuple(tasks)
        self.setting: Setting = "domain" if classes_are_equal(tasks) else "class"
        every_class = [name for task in tasks for name in task.classes]
        self.by_task = len(set(every_class)) < len(every_class)
        self.teachers = experiment.plan_teacher()
        self.features: list[ExtractFeatures] = []
        self.heads: list[FitHeads] = []
        self.adapted: list[ExtractFeatures] = []
        self.served: list[FitHeads] = []
        self.learners: dict[str, list[LearnTask]] = {}
        self.evaluations: dict[str, list[EvaluateTask]] = {}

    def task(self, number: int) -> list[Stage]:
        """The stages of one task."""
        experiment, task = self.experiment, self.tasks[number]
        made: list[Stage] = []
        if experiment.heads or experiment.inference or experiment.controls.heads:
            features = ExtractFeatures(f"{task.name}/features", task, experiment.student.network)
            self.features.append(features)
            made.append(features)
        if experiment.heads or experiment.inference:
            made.append(self._heads(self.heads, f"{task.name}/heads", self.features))
        strategy = experiment.strategy
        assert strategy.component is not None and issubclass(strategy.component, Strategy)
        made += self._learner(number, "student", strategy, experiment.student, experiment.objectives)
        if strategy.component.heads_on_student:
            learned = self.learners["student"][0].output
            adapted = ExtractFeatures(f"{task.name}/adapted-features", task, experiment.student.network, learned)
            self.adapted.append(adapted)
            heads = self._heads(self.served, f"{task.name}/adapted-heads", self.adapted, "student + ")
            made += [adapted, heads]
        return made + self._controls(number)

    def end(self) -> list[Stage]:
        """The stages after the last task."""
        experiment = self.experiment
        made: list[Stage] = []
        controls = None
        if experiment.controls.heads:
            features = tuple(stage.output for stage in self.features)
            controls = StreamControls("controls", features=features, setting=self.setting)
            made.append(controls)
        evaluations = tuple(stage.output for stages in self.evaluations.values() for stage in stages)
        summary = SummarizeStream(
            "summary",
            tuple(task.name for task in self.tasks),
            "student",
            evaluations,
            tuple(stage.output for stage in (*self.served, *self.heads)),
            controls.output if controls else None,
        )
        return [*made, self._export(), summary, WriteReport("report")]

    def _export(self) -> ExportStream:
        experiment = self.experiment
        return ExportStream(
            "export",
            self.tasks,
            experiment.student.network,
            self.learners["student"][-1].output,
            self.heads[-1].output if self.heads else None,
            self.served[-1].output if self.served else None,
            experiment.heads[0] if self.served else None,
            "student + ",
            experiment.inference,
        )

    def _controls(self, number: int) -> list[Stage]:
        """Learners that are controls: without the previous model, and without a memory."""
        experiment, made = self.experiment, []
        objectives = _without_previous(experiment)
        if experiment.controls.sequential:
            made += self._learner(number, "sequential", GoOn.Settings(), experiment.student, objectives)
        if experiment.controls.separate:
            full = experiment.student.model_copy(update={"train": "full", "deltas": ()})
            made += self._learner(number, "separate", Bank.Settings(), full, objectives)
        return made

    def _learner(
        self,
        number: int,
        name: str,
        strategy: Strategy.Settings,
        student: StudentSettings,
        objectives: tuple[Objective.Settings, ...],
    ) -> list[Stage]:
        experiment, task = self.experiment, self.tasks[number]
        learners = self.learners.setdefault(name, [])
        evaluations = self.evaluations.setdefault(name, [])
        own = name == "student"
        learner = LearnTask(
            f"{task.name}/{name}",
            task=task,
            strategy=strategy,
            student=student,
            objectives=objectives,
            augment=experiment.augment if own or experiment.teacher is None else experiment.augment.alone(),
            training=experiment.training,
            teacher=experiment.teacher if own else None,
            networks=tuple(stage.output for stage in self.teachers) if own else (),
            previous=learners[-1].output if learners else None,
        )
        learners.append(learner)
        assert strategy.component is not None and issubclass(strategy.component, Strategy)
        if strategy.component.heads_on_student:
            return [learner]
        evaluation = EvaluateTask(
            f"{task.name}/{name}-test",
            model=name,
            tasks=self.tasks[: number + 1],
            learned=learner.output,
            features=tuple(stage.output for stage in self.features),
            heads=self.heads[-1].output if self.heads else None,
            previous=evaluations[-1].output if evaluations else None,
            inference=experiment.inference if strategy.component.head_per_task and own else (),
            setting=self.setting,
            later=self.tasks[number + 1 :] if self.setting == "domain" and not strategy.component.head_per_task else (),
            again=number == len(self.tasks) - 1,
            by_task=self.by_task,
        )
        evaluations.append(evaluation)
        return [learner, evaluation]

    def _heads(
        self, stages: list[FitHeads], name: str, features: Sequence[ExtractFeatures], prefix: str = ""
    ) -> FitHeads:
        heads = FitHeads(
            name,
            self.experiment.heads,
            tuple(stage.output for stage in features),
            stages[-1].output if stages else None,
            self.setting,
            prefix,
            self.experiment.inference,
            self.by_task,
        )
        stages.append(heads)
        return heads


def _without_previous(experiment: ContinualExperiment) -> tuple[Objective.Settings, ...]:
    """The objectives that read no teacher."""
    return tuple(o for o in experiment.objectives if not o.component.reads_teacher)  # type: ignore[union-attr]
