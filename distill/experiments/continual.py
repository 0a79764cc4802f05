"""Continual learning: tasks come one after another, and what was learned must not be forgotten.

Importing this does not import torch. Opening the stream does, since the tasks follow from the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Registry, Settings, error_at, is_deferred
from augment.policy import plan_views
from augment.views import InputSpec
from distill.experiments.student import StudentExperiment

if TYPE_CHECKING:  # these import torch
    from distill.continual.heads.base import Head
    from distill.continual.inference.base import TaskInference
    from distill.continual.memory.base import Memory
    from distill.continual.regularizers.base import Regularizer
    from distill.continual.strategies.base import Strategy
    from distill.continual.streams.base import Stream
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage
    from distill.stages.outputs import TeacherNetworks

    AnyStream = Stream.Settings
    AnyStrategy = Strategy.Settings
    AnyHead = Head.Settings
    AnyInference = TaskInference.Settings
    AnyMemory = Memory.Settings
    AnyRegularizer = Regularizer.Settings
else:
    AnyStream = Annotated[Settings, Registry("distill.continual.streams", "Stream")]
    AnyStrategy = Annotated[Settings, Registry("distill.continual.strategies", "Strategy")]
    AnyHead = Annotated[Settings, Registry("distill.continual.heads", "Head")]
    AnyInference = Annotated[Settings, Registry("distill.continual.inference", "TaskInference")]
    AnyMemory = Annotated[Settings, Registry("distill.continual.memory", "Memory")]
    AnyRegularizer = Annotated[Settings, Registry("distill.continual.regularizers", "Regularizer")]


MODELS = ("student", "sequential", "separate", "joint", "gdumb", "joint head", "sequential head", "task heads")
"""Names of learners and controls, which no head may have."""


class StreamControlSettings(Settings):
    """The controls that a learner is compared with. Those on frozen features cost seconds."""

    heads: bool = Field(True, description="joint, sequential and task-wise linear heads on frozen features")
    sequential: bool = Field(False, description="the same student trained on one task after the other")
    separate: bool = Field(False, description="a whole network for each task, trained in full")
    joint: bool = Field(
        False,
        description="after each task, the same student trained anew on all tasks so far, which takes as many steps as "
        "all their trainings together",
    )
    gdumb: bool | None = Field(
        None,
        description="GDumb: after each task, the same student trained anew on the memory alone, with as many steps as "
        "the task took; none: where there is a memory",
    )


class ContinualExperiment(StudentExperiment):
    """The config of a stream: the experiment of a student, with tasks, a strategy, and closed-form heads."""

    has_tasks: ClassVar[bool] = True
    kind: Literal["continual"] = "continual"  # type: ignore[assignment]
    stream: AnyStream = Field(description="how the data is divided into tasks, and in which order they come")
    setting: Literal["representation"] | None = Field(
        None,
        description="representation: after each task, k nearest neighbors and a linear classifier on the student's "
        "frozen features are fitted on and evaluated with the images of all tasks; none: so where no objective trains "
        "the classifier",
    )
    strategy: AnyStrategy = Field({"type": "bank"}, validate_default=True, description="how a task is learned")
    heads: tuple[AnyHead, ...] = Field(
        ({"type": "slda"}, {"type": "ridge"}, {"type": "ncm"}),
        validate_default=True,
        description="closed-form heads on frozen features: controls; with strategy first_task, also the served heads",
    )
    inference: tuple[AnyInference, ...] = Field(
        ({"type": "ncm"},), validate_default=True, description="rules that give the task of an image to a bank"
    )
    memory: AnyMemory | None = Field(
        None, description="keep images of earlier tasks and train on them beside those of the task; none: keep none"
    )
    regularizers: tuple[AnyRegularizer, ...] = Field(
        (), description="penalties on moving away from the trained weights after earlier tasks, in the loss"
    )
    controls: StreamControlSettings = StreamControlSettings()
    continues: Path | None = Field(
        None, description="folder of a finished stream whose learner goes on, without its images; without controls"
    )

    @property
    def trains_head(self) -> bool:
        """Whether an objective trains the classifier; without one, only the features can be evaluated."""
        from distill.training.terms import trains_head

        return trains_head(self.objectives)

    @property
    def evaluates_features(self) -> bool:
        """Whether the student's features are evaluated after each task."""
        heads: bool = self.strategy.component.heads_on_student  # type: ignore[union-attr]
        return self.setting == "representation" or not (self.trains_head or heads)

    def describe(self, data: ExperimentData) -> list[str]:
        from distill.continual.open_stream import stream_in
        from distill.continual.summary import task_lines

        return task_lines(stream_in(self).tasks(data), data)

    def plan(self) -> list[Stage]:
        from distill.continual.open_stream import open_stream
        from distill.experiments.plans.stream import plan_stream

        return plan_stream(self, open_stream(self))

    def plan_teacher(self) -> list[Stage[TeacherNetworks]]:
        """The stages of the teacher's networks other than the student before a task, which the tasks make."""
        if self.teacher is None:
            return []
        from distill.stages.pretrained_teacher import PretrainedTeacher

        others = tuple(network for network in self.teacher.frozen if not network.is_previous)
        return [PretrainedTeacher("teacher", self.teacher.model_copy(update={"networks": others}))] if others else []

    @model_validator(mode="after")
    def _stream_fits(self, info: ValidationInfo) -> Self:
        if is_deferred(info, "classes"):
            return self
        if self.fit_teacher is not None:
            raise error_at("fit_teacher", "a teacher that is fitted on all data knows the classes of later tasks")
        if self.strategy.component.heads_on_student and not self.heads:  # type: ignore[union-attr]
            raise error_at("heads", f"strategy {self.strategy.type} serves a closed-form head; name one")
        self._check_names()
        self._check_previous_teacher()
        self._check_stream()
        self._check_memory()
        self._check_representation()
        if self.strategy.component.trains_deltas and not self.student.deltas:  # type: ignore[union-attr]
            raise error_at("student.deltas", f"strategy {self.strategy.type} combines the deltas of tasks; name one")
        self.strategy.component(self.strategy).check_student(self.student)  # type: ignore[union-attr, misc]
        if self.regularizers and not self.strategy.component.same_parameters:  # type: ignore[union-attr]
            text = f"strategy {self.strategy.type} does not train the same weights further; take sequential"
            raise error_at("regularizers", text)
        return self

    def _check_names(self) -> None:
        """Raise an error if two heads, or two rules of inference, would have one name in tables and files."""
        first: dict[str, int] = {}
        for number, head in enumerate(self.heads):
            name: str = head.shown  # type: ignore[attr-defined]
            if name in first:
                key = f"heads.{number}.name"
                raise error_at(key, f"{name!r} is the name of heads.{first[name]} too; give one of them another name")
            if name in MODELS or "/" in name or "+" in name:
                text = f"{name!r} is the name of a learner or control, or has / or +; take another name"
                raise error_at(f"heads.{number}.name", text)
            first[name] = number
        types = [rule.type for rule in self.inference]  # type: ignore[attr-defined]
        for number, own in enumerate(types):
            if own in types[:number]:
                text = f"{own} is inference.{types.index(own)} too; name each rule once"
                raise error_at(f"inference.{number}.type", text)

    def _check_memory(self) -> None:
        """Raise an error if the memory cannot be used by this stream."""
        stored = [n for n, o in enumerate(self.objectives) if o.type == "der"]
        if stored and (self.memory is None or not self.memory.logits):
            text = "der compares with the logits of a memory; set memory.logits: true"
            raise error_at(f"objectives.{stored[0]}", text)
        if self.memory is None:
            if self.controls.gdumb:
                raise error_at("controls.gdumb", "GDumb trains on the memory alone, and there is none; set memory")
            return
        strategy = self.strategy.component
        assert strategy is not None
        if strategy.head_per_task or strategy.heads_on_student:  # type: ignore[attr-defined]
            text = f"strategy {self.strategy.type} trains no student on the classes of earlier tasks; take sequential"
            raise error_at("memory", text)
        if self.data.sampler == "balanced":
            raise error_at("data.sampler", "balanced: with a memory, memory.batch_share decides what a batch holds")
        if self.teacher is not None and self.teacher.cache is not None:
            raise error_at("teacher.cache", "with a memory, the batches of a task depend on the tasks before it")
        if self.memory.logits and self.augment.mix is not None:
            raise error_at(
                "augment.mix", "memory.logits are of views that are repeated, and mixed views depend on the batch"
            )
        if self.memory.logits and len(plan_views(self.augment, InputSpec((8, 8))).student) > 1:
            text = f"{self.augment.policy} gives the student several views, and memory.logits are of one"
            raise error_at("augment.policy", text)

    def _check_representation(self) -> None:
        """Raise an error if the student's features cannot be evaluated, or something reads an untrained classifier."""
        if not self.evaluates_features:
            return
        strategy: Any = self.strategy.component
        if (strategy.head_per_task and not strategy.unites_heads) or strategy.heads_on_student:
            own = self.strategy.type  # type: ignore[attr-defined]
            why = "is set" if self.setting else "follows from objectives that train no classifier"
            text = f"setting: representation, which {why}, evaluates one network for all tasks, and {own} has none"
            raise error_at("strategy.type", f"{text}; use sequential or merge_and_go")
        if self.continues is not None:
            text = "setting: representation evaluates images of all tasks, and those of the earlier run are not read"
            raise error_at("continues", text)
        if self.trains_head:
            return
        untrained = "no objective trains the classifier, whose predictions this would read"
        if self.training.early_stop is not None:
            raise error_at("training.early_stop", untrained)
        if self.training.keep == "best":
            raise error_at("training.keep", untrained)
        if self.training.test_every is not None:
            raise error_at("training.test_every", untrained)
        if self.controls.separate:
            raise error_at(
                "controls.separate", "a network for each task is evaluated by its classifier, and none is trained"
            )

    def _check_previous_teacher(self) -> None:
        """Raise an error if the previous model cannot be a teacher of this stream."""
        networks = self.teacher.networks if self.teacher is not None else ()
        numbers = [n for n, network in enumerate(networks) if network.is_previous]
        if not numbers:
            return
        key = f"teacher.networks.{numbers[0]}.model"
        if self.strategy.component.heads_on_student:  # type: ignore[union-attr]
            text = f"strategy {self.strategy.type} trains no student after the first task, which has no previous model"
            raise error_at(key, text)
        readers = [o.type for o in self.objectives if o.component.reads_frozen()]  # type: ignore[union-attr]
        if len(networks) == 1 and len(readers) == len(self.objectives):
            text = f"{', '.join(readers)} read the previous model, which the first task lacks; add one such as ce"
            raise error_at("objectives", text)
        if heads := [o.type for o in self.objectives if o.component.sets_head]:  # type: ignore[union-attr]
            text = f"{', '.join(heads)} gives the student the teacher's head, and the previous model has fewer classes"
            raise error_at(key, text)

    def _check_stream(self) -> None:
        """Raise an error if the training reveals to what learns where a task of an online stream ends."""
        stream: Any = self.stream.component
        kind = self.stream.type  # type: ignore[attr-defined]
        if stream.epochs is not None and self.training.epochs != stream.epochs:
            passes = f"{stream.epochs} pass{'es' * (stream.epochs != 1)}"
            raise error_at(
                "training.epochs", f"stream {kind} allows {passes} over the images, not {self.training.epochs}"
            )
        if stream.boundaries:
            return
        if not self.strategy.component.same_parameters:  # type: ignore[union-attr]
            own = self.strategy.type  # type: ignore[attr-defined]
            text = f"stream {kind} does not tell where a task ends, and {own} changes there what is trained"
            raise error_at("strategy.type", f"{text}; use sequential")
        if any(network.is_previous for network in (self.teacher.networks if self.teacher else ())):
            text = f"stream {kind} does not tell where a task ends, so there is no model before it"
            raise error_at("teacher.networks", text)
        if self.regularizers:
            text = f"stream {kind} does not tell where a task ends, and there the weights to hold would be noted"
            raise error_at("regularizers", text)
        schedule = self.training.schedule
        if schedule.type != "constant" or schedule.warmup:
            text = f"stream {kind} does not tell where a task ends: use {{type: constant, warmup: 0}}"
            raise error_at("training.schedule", text)
