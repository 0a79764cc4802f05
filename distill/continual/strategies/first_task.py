"""Adapt on the first task alone; later tasks only add to the sums that closed-form heads are fitted from."""

from __future__ import annotations

from typing import ClassVar, Literal

from distill.continual.learned import LearnedNetwork
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import read_part, write_part
from distill.models.student import Student


class FirstTask(Strategy):
    """The first task trains the student; afterwards it is frozen, and the first of ``heads`` is served on its features.

    Papers: Panos et al., First Session Adaptation, arXiv 2303.13199; McDonnell et al., RanPAC, arXiv 2307.02251
    (its phase 1).

    Example:
        >>> from distill.continual.strategies.first_task import FirstTask
        >>> FirstTask(FirstTask.Settings()).heads_on_student
        True
    """

    class Settings(Strategy.Settings):
        type: Literal["first_task"] = "first_task"

    paper: ClassVar[str] = "Panos et al., arXiv 2303.13199"
    heads_on_student: ClassVar[bool] = True
    settings: Settings

    def start(self, fit: TaskFit) -> TaskStart:
        return TaskStart(fit.student if fit.previous is None else None)

    def close(self, fit: TaskFit, student: Student) -> None:
        write_part(fit, student)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        if fit.previous is not None:
            return fit.previous.parts
        return (read_part(fit.folder, fit.task.name, fit.classes, fit.student.network),)

    def features(self, fit: TaskFit) -> LearnedNetwork | None:
        return self.parts(fit)[0]
