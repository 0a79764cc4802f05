"""Every task trains a new student: on the task's images and those of a memory, if there is one."""

from __future__ import annotations

from typing import ClassVar, Literal

from distill.continual.learned import LearnedNetwork
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import read_part, write_part
from distill.models.student import Student


class Anew(Strategy):
    """Every task trains the student from its pretrained start, with a head for all classes so far.

    On a memory alone it is GDumb, on all images so far joint training; both are controls.

    Paper: Prabhu et al., GDumb, ECCV 2020.

    Example:
        >>> from distill.continual.strategies.anew import Anew
        >>> Anew(Anew.Settings()).head_per_task
        False
    """

    class Settings(Strategy.Settings):
        type: Literal["anew"] = "anew"

    paper: ClassVar[str] = "Prabhu et al., GDumb, ECCV 2020"
    settings: Settings

    def start(self, fit: TaskFit) -> TaskStart:
        return TaskStart(fit.student)

    def close(self, fit: TaskFit, student: Student) -> None:
        write_part(fit, student)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        return (read_part(fit.folder, fit.task.name, fit.classes, fit.student.network),)
