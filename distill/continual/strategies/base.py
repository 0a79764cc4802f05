"""The interface of strategies: what a student starts from in a task, and what is kept of it afterwards.

A strategy is given one task at a time and the result of the tasks before it. It does not train: the stage
``LearnTask`` does, with the training loop of every other fit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

import augment.base
from augment.base import Component
from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.regularizers.base import Batches
from distill.continual.task import Task
from distill.models.network import Network
from distill.models.settings import StudentSettings
from distill.models.student import Student


@dataclass(frozen=True)
class TaskFit:
    """What a strategy knows in a task.

    Args:
        task: of the stream.
        student: the experiment's student.
        seed: keyed by the task's name.
        folder: of the stage.
        classes: names of the classes of the student's head, in the order of its rows.
        previous: the result of the task before; None in the first one.
        earlier: folders of the stages of all tasks before, in their order.
        images: evaluation views and ids of the task's training images, for ``close``.
    """

    task: Task
    student: StudentSettings
    seed: int
    folder: Path
    classes: tuple[str, ...]
    previous: LearnedTask | None = None
    earlier: tuple[Path, ...] = ()
    images: Batches = ()


@dataclass(frozen=True)
class TaskStart:
    """What the student of a task starts from.

    Args:
        student: its network and deltas; None: the task trains no student.
        prepared: folder of a fit whose choices from data (ranks, masks) it takes over; None: it makes its own.
        weights: values of tensors of ``Student.own_state`` to start from; rows of the head by ``classes``.
        classes: names of the classes of the head in ``weights``.
        network: makes the network in place of ``student.network``; its head is replaced. None: that one.
        carried: folder of a fit whose objectives with ``carry: stream`` and whose momentum network go on; None: the
            task makes new ones.
    """

    student: StudentSettings | None
    prepared: Path | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    network: Callable[[], Network] | None = None
    carried: Path | None = None


class Strategy(Component):
    """How a stream is learned.

    Class attributes:
        paper: short citation.
        head_per_task: whether each task has a head of its own; else one head has a row for each class seen so far.
        unites_heads: whether the heads of the tasks become one head of one network.
        heads_on_student: whether closed-form heads are fitted on the features of its student, of which the first
            configured one is served.
        trains_deltas: whether it needs a student that trains weight deltas.
        same_parameters: whether every task trains the same parameters further, so that a regularizer can hold them.
        carries: whether objectives with ``carry: stream`` and the momentum network go on to the next task.
        merges: whether the deltas of a task are merged into the network that the next one starts from.
    """

    class Settings(augment.base.Settings):
        type: str

    paper: ClassVar[str] = ""
    head_per_task: ClassVar[bool] = False
    unites_heads: ClassVar[bool] = False
    heads_on_student: ClassVar[bool] = False
    trains_deltas: ClassVar[bool] = False
    same_parameters: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    @property
    def keeps_networks(self) -> bool:
        """Whether each task has a network that later tasks do not change."""
        return self.head_per_task and not self.unites_heads and not self.heads_on_student

    def check_student(self, student: StudentSettings) -> None:
        """Raise an error that names the key if the strategy cannot learn this student."""
        return None

    @abstractmethod
    def start(self, fit: TaskFit) -> TaskStart:
        """What the student of a task starts from."""

    @abstractmethod
    def close(self, fit: TaskFit, student: Student) -> None:
        """Write what is kept of a trained student into ``fit.folder``, with deltas in their exported form."""

    @abstractmethod
    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        """The networks after a task that is closed, from their files."""

    def features(self, fit: TaskFit) -> LearnedNetwork | None:
        """The network whose features closed-form heads are fitted on, with ``heads_on_student``."""
        return None

    def notes(self, folder: Path) -> Iterable[str]:
        """What the report tells about a task that was closed in a folder."""
        return ()
