"""The stages of a stream: for each task learning, features, heads and evaluation; then controls and summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.continual.open_stream import renamed
from distill.continual.scores import Setting
from distill.continual.strategies.anew import Anew
from distill.continual.strategies.bank import Bank
from distill.continual.strategies.base import Strategy
from distill.continual.strategies.sequential import SequentialTuning
from distill.continual.task import Task, classes_are_equal, union
from distill.models.settings import StudentSettings
from distill.models.teacher_settings import TeacherSettings, WeightingSettings
from distill.objectives.base import Objective, Schedule
from distill.objectives.ce import CrossEntropy
from distill.run.stage import Stage
from distill.stages.continued_run import (
    ADAPTED,
    HEADS,
    LEARNER,
    SCORED,
    ContinuedHeads,
    ContinuedRun,
    ContinuedScores,
    earlier_tasks,
)
from distill.stages.evaluate_exemplars import EvaluateExemplars
from distill.stages.evaluate_representation import EvaluateRepresentation
from distill.stages.evaluate_task import EvaluateTask
from distill.stages.export_features import ExportFeatures
from distill.stages.export_stream import ExportStream
from distill.stages.extract_features import ExtractFeatures
from distill.stages.fit_heads import FitHeads
from distill.stages.learn_task import LearnTask
from distill.stages.report import WriteReport
from distill.stages.stream_controls import StreamControls
from distill.stages.summarize_stream import SummarizeStream
from distill.stages.untrained_student import UntrainedStudent

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
    stages: list[Stage] = [*plan.teachers, *plan.before, *plan.starts]
    for number in range(len(tasks)):
        stages += plan.task(number)
    return stages + plan.end()


class _Plan:
    """The stages so far, by what they are."""

    def __init__(self, experiment: ContinualExperiment, tasks: Sequence[Task]):
        self.experiment = experiment
        self.earlier = earlier_tasks(experiment.continues) if experiment.continues else ()
        self.tasks = renamed(tasks, self.earlier)
        self.setting: Setting = "domain" if classes_are_equal((*self.earlier, *self.tasks)) else "class"
        every_class = [name for task in (*self.earlier, *self.tasks) for name in task.classes]
        self.by_task = len(set(every_class)) < len(every_class)
        self.teachers = experiment.plan_teacher()
        self.features: list[ExtractFeatures] = []
        self.heads: list[FitHeads | ContinuedHeads] = []
        self.adapted: list[ExtractFeatures] = []
        self.served: list[FitHeads | ContinuedHeads] = []
        self.learners: dict[str, list[LearnTask | ContinuedRun]] = {}
        self.evaluations: dict[str, list[EvaluateTask]] = {}
        self.exemplar_means: list[EvaluateExemplars] = []
        self.representations: list[EvaluateRepresentation] = []
        labeled = any(task.classes for task in self.tasks)  # without labels, there is nothing to evaluate
        self.evaluates_features = experiment.evaluates_features and (labeled or experiment.setting is not None)
        self.before: list[Stage] = self._continued(experiment.continues) if experiment.continues else []
        self.starts = self._untrained()

    def _untrained(self) -> list[Stage]:
        """The stages that evaluate the student before the first task, where later tasks can be predicted."""
        made: list[Stage] = []
        strategy = self.experiment.strategy.component
        assert strategy is not None and issubclass(strategy, Strategy)
        if self.evaluates_features:
            made.append(self._representation("untrained", "student", 0))
        several = strategy.heads_on_student or (strategy.head_per_task and not strategy.unites_heads)
        if self.setting == "domain" and not several and self.experiment.trains_head and not self.experiment.continues:
            network = UntrainedStudent("untrained-student", self.tasks[0], self.experiment.student.network)
            test = EvaluateTask(
                "untrained-test",
                model="student",
                tasks=self.tasks,
                learned=network.output,
                setting=self.setting,
                by_task=self.by_task,
            )
            made += [network, test]
        return made

    def _continued(self, run: Path) -> list[Stage]:
        """The stages that take over the learner, the sums and the scores of a finished run."""
        experiment, strategy = self.experiment, self.experiment.strategy.component
        assert strategy is not None and issubclass(strategy, Strategy)
        learner = ContinuedRun(LEARNER, run, experiment.strategy, experiment.student)
        self.learners["student"] = [learner]
        if experiment.heads or experiment.inference:
            self.heads.append(ContinuedHeads(HEADS, run))
        if strategy.heads_on_student:
            self.served.append(ContinuedHeads(ADAPTED, run, "adapted-heads"))
        names = tuple(task.name for task in self.tasks)
        scores = ContinuedScores(SCORED, run, names, strategy(experiment.strategy).keeps_networks)
        return [learner, *self.heads, *self.served, scores]

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
        if experiment.controls.heads and not experiment.continues:
            features = tuple(stage.output for stage in self.features)
            controls = StreamControls("controls", features=features, setting=self.setting)
            made.append(controls)
        evaluations = tuple(stage.output for stages in self.evaluations.values() for stage in stages)
        evaluations += tuple(stage.output for stage in self.exemplar_means)
        evaluations += tuple(stage.output for stage in self.representations)
        summary = SummarizeStream(
            "summary",
            tuple(task.name for task in (*self.earlier, *self.tasks)),
            "student",
            evaluations,
            tuple(stage.output for stage in (*self.served, *self.heads) if isinstance(stage, FitHeads)),
            controls.output if controls else None,
            self.before[-1].output if self.before else None,
            tuple(s.output for s in self.starts if isinstance(s, EvaluateTask | EvaluateRepresentation)),
        )
        if not experiment.trains_head and experiment.evaluates_features:
            made.append(ExportFeatures("export", self.learners["student"][-1].output))
        elif any(task.classes for task in self.tasks):  # without labels, there is nothing to predict
            made.append(self._export())
        return [*made, summary, WriteReport("report")]

    def _export(self) -> ExportStream:
        experiment = self.experiment
        return ExportStream(
            "export",
            (*self.earlier, *self.tasks),
            experiment.student.network,
            self.learners["student"][-1].output,
            self.heads[-1].output if self.heads else None,
            self.served[-1].output if self.served else None,
            experiment.heads[0] if self.served else None,
            "student + ",
            experiment.inference,
        )

    def _controls(self, number: int) -> list[Stage]:
        """Learners that are controls: without the previous model, and without a memory; none where a run goes on."""
        experiment, made = self.experiment, []
        if experiment.continues:
            return []
        objectives = _of_controls(experiment)
        labels = _labels_alone(experiment) if experiment.trains_head else objectives
        if experiment.controls.sequential:
            made += self._learner(number, "sequential", SequentialTuning.Settings(), experiment.student, objectives)
        if experiment.controls.separate:
            full = experiment.student.model_copy(update={"train": "full", "deltas": (), "start": None})
            made += self._learner(number, "separate", Bank.Settings(), full, objectives)
        if experiment.controls.joint:
            made += self._learner(number, "joint", Anew.Settings(), experiment.student, labels)
        if experiment.memory is not None and experiment.controls.gdumb is not False:
            made += self._learner(number, "gdumb", Anew.Settings(), experiment.student, labels)
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
        teacher = experiment.teacher if own else _momentum_alone(experiment.teacher, objectives)
        learner = LearnTask(
            f"{task.name}/{name}",
            task=union(self.tasks[: number + 1]) if name == "joint" else task,
            strategy=strategy,
            student=student,
            objectives=objectives,
            augment=experiment.augment if teacher or experiment.teacher is None else experiment.augment.alone(),
            training=experiment.training,
            teacher=teacher,
            networks=tuple(stage.output for stage in self.teachers) if own else (),
            previous=learners[-1].output if learners else None,
            memory=experiment.memory if own else None,
            regularizers=experiment.regularizers if own else (),
            exemplars=self.learners["student"][-1].output if name == "gdumb" else None,
        )
        learners.append(learner)
        assert strategy.component is not None and issubclass(strategy.component, Strategy)
        if strategy.component.heads_on_student:
            return [learner]
        several = strategy.component.head_per_task and not strategy.component.unites_heads
        made: list[Stage] = [learner]
        if self.evaluates_features and not several:
            features = f"{task.name}/{name}-representation"
            self.representations.append(self._representation(features, name, number + 1, learner))
            made.append(self.representations[-1])
        if not experiment.trains_head:
            return made
        evaluation = EvaluateTask(
            f"{task.name}/{name}-test",
            model=name,
            tasks=self.tasks[: number + 1],
            learned=learner.output,
            features=tuple(stage.output for stage in self.features),
            heads=self.heads[-1].output if self.heads else None,
            previous=evaluations[-1].output if evaluations else None,
            inference=experiment.inference if several and own else (),
            setting=self.setting,
            later=self.tasks[number + 1 :] if self.setting == "domain" and not several else (),
            again=number == len(self.tasks) - 1,
            by_task=self.by_task,
        )
        evaluations.append(evaluation)
        if not own or experiment.memory is None or not experiment.memory.component.needs_features:  # type: ignore[union-attr]
            return [*made, evaluation]
        means = EvaluateExemplars(
            f"{task.name}/exemplar-means", name, self.tasks[: number + 1], learner.output, self.setting
        )
        self.exemplar_means.append(means)
        return [*made, evaluation, means]

    def _representation(
        self, name: str, model: str, after: int, learner: LearnTask | None = None
    ) -> EvaluateRepresentation:
        network, learned = self.experiment.student.network, learner.output if learner else None
        return EvaluateRepresentation(name, model, self.tasks, after, network, learned)

    def _heads(
        self, stages: list[FitHeads | ContinuedHeads], name: str, features: Sequence[ExtractFeatures], prefix: str = ""
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


def _of_controls(experiment: ContinualExperiment) -> tuple[Objective.Settings, ...]:
    """The objectives that read neither a frozen teacher nor a memory; plain cross-entropy if there is none."""
    own = [o for o in experiment.objectives if not o.component.reads_frozen()]  # type: ignore[union-attr]
    return tuple(o for o in own if not o.component.reads_memory) or (CrossEntropy.Settings(),)  # type: ignore[union-attr]


def _labels_alone(experiment: ContinualExperiment) -> tuple[Objective.Settings, ...]:
    """Cross-entropy among all classes, with the settings of the experiment's first one."""
    given = (o for o in experiment.objectives if isinstance(o, CrossEntropy.Settings))
    changed = {"weight": 1.0, "schedule": Schedule(), "among": "all"}
    return (next(given, CrossEntropy.Settings()).model_copy(update=changed),)


def _momentum_alone(
    teacher: TeacherSettings | None, objectives: Sequence[Objective.Settings]
) -> TeacherSettings | None:
    """The teacher without frozen networks; None if no objective reads a momentum network."""
    if teacher is None or not any(o.component.reads_momentum for o in objectives):  # type: ignore[union-attr]
        return None
    networks = tuple(network for network in teacher.networks if network.is_momentum)
    return teacher.model_copy(update={"networks": networks, "weighting": WeightingSettings(), "cache": None})
