"""Continual learning: tasks come one after another, and what was learned must not be forgotten.

Importing this does not import torch. Opening the stream does, since the tasks follow from the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Registry, Settings, error_at, is_deferred
from distill.experiments.student import StudentExperiment

if TYPE_CHECKING:  # these import torch
    from distill.continual.heads.base import Head
    from distill.continual.inference.base import TaskInference
    from distill.continual.strategies.base import Strategy
    from distill.continual.streams.base import Stream
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage
    from distill.stages.outputs import TeacherNetworks

    AnyStream = Stream.Settings
    AnyStrategy = Strategy.Settings
    AnyHead = Head.Settings
    AnyInference = TaskInference.Settings
else:
    AnyStream = Annotated[Settings, Registry("distill.continual.streams", "Stream")]
    AnyStrategy = Annotated[Settings, Registry("distill.continual.strategies", "Strategy")]
    AnyHead = Annotated[Settings, Registry("distill.continual.heads", "Head")]
    AnyInference = Annotated[Settings, Registry("distill.continual.inference", "TaskInference")]


class StreamControlSettings(Settings):
    """The controls that a learner is compared with. Those on frozen features cost seconds."""

    heads: bool = Field(True, description="joint, sequential and task-wise linear heads on frozen features")
    sequential: bool = Field(False, description="the same student trained on one task after the other")
    separate: bool = Field(False, description="a whole network for each task, trained in full")


class ContinualExperiment(StudentExperiment):
    """The config of a stream: the experiment of a student, with tasks, a strategy, and closed-form heads."""

    has_tasks: ClassVar[bool] = True
    kind: Literal["continual"] = "continual"  # type: ignore[assignment]
    stream: AnyStream = Field(description="how the data is divided into tasks, and in which order they come")
    strategy: AnyStrategy = Field({"type": "bank"}, validate_default=True, description="how a task is learned")
    heads: tuple[AnyHead, ...] = Field(
        ({"type": "slda"}, {"type": "ridge"}, {"type": "ncm"}),
        validate_default=True,
        description="closed-form heads on frozen features: controls; with strategy first_task, also the served heads",
    )
    inference: tuple[AnyInference, ...] = Field(
        ({"type": "ncm"},), validate_default=True, description="rules that give the task of an image to a bank"
    )
    controls: StreamControlSettings = StreamControlSettings()
    continues: Path | None = Field(
        None, description="folder of a finished stream whose learner goes on, without its images; without controls"
    )

    def describe(self, data: ExperimentData) -> list[str]:
        from distill.continual.open_stream import stream_in
        from distill.continual.summary import task_lines

        return task_lines(stream_in(self).tasks(data), data)

    def plan(self) -> list[Stage]:
        from distill.continual.open_stream import open_stream
        from distill.continual.plan import plan_stream

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
        self._check_previous_teacher()
        self._check_stream()
        return self

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
        if self.strategy.component.head_per_task:  # type: ignore[union-attr]
            own = self.strategy.type  # type: ignore[attr-defined]
            text = f"stream {kind} does not tell where a task ends, and {own} has a head for each task; use go_on"
            raise error_at("strategy.type", text)
        if any(network.is_previous for network in (self.teacher.networks if self.teacher else ())):
            text = f"stream {kind} does not tell where a task ends, so there is no model before it"
            raise error_at("teacher.networks", text)
        schedule = self.training.schedule
        if schedule.type != "constant" or schedule.warmup:
            text = f"stream {kind} does not tell where a task ends: use {{type: constant, warmup: 0}}"
            raise error_at("training.schedule", text)
