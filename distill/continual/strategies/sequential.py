"""One delta that goes on: sequential fine-tuning, the strategy that forgets unless a loss or a memory prevents it."""

from __future__ import annotations

from typing import ClassVar, Literal

from distill.continual.learned import LearnedNetwork
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import read_part, write_part
from distill.models.student import Student
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import RESULT

FIT = "fit"


class SequentialTuning(Strategy):
    """Every task trains the same student further; its head gets a row for each new class.

    Ranks and masks that deltas choose from data are chosen in the first task. The state of objectives with
    ``carry: stream`` (projectors, predictors, queues) and the momentum network go on with the student.

    Example:
        >>> from distill.continual.strategies.sequential import SequentialTuning
        >>> SequentialTuning(SequentialTuning.Settings()).head_per_task
        False
    """

    class Settings(Strategy.Settings):
        type: Literal["sequential"] = "sequential"

    paper: ClassVar[str] = ""
    carries: ClassVar[bool] = True
    same_parameters: ClassVar[bool] = True
    settings: Settings

    def start(self, fit: TaskFit) -> TaskStart:
        if fit.previous is None:
            return TaskStart(fit.student)
        before = fit.previous.folder / FIT
        weights = VerifiedCheckpointIO().load_checkpoint(before / RESULT)["student"]
        return TaskStart(fit.student, before, weights, fit.previous.classes, carried=before)

    def close(self, fit: TaskFit, student: Student) -> None:
        write_part(fit, student)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        part = read_part(fit.folder, fit.task.name, fit.classes, fit.student.network)
        return (part,)
