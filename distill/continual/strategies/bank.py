"""A bank of deltas: one delta and one head for each task over one backbone, so that no task is forgotten."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from distill.continual.learned import Part
from distill.continual.strategies.base import Start, Strategy, TaskFit
from distill.continual.strategies.files import MERGED, merged_network, read_part, write_part
from distill.models.settings import NetworkSettings
from distill.models.student import Student


class Bank(Strategy):
    """Every task trains its own delta and head from the same backbone. What a task wrote is never changed.

    With ``base: pretrained`` a task's delta depends on its own images alone, so the order of the tasks changes nothing.
    With ``base: first_task``, as HALRP publishes it, the first task trains the network that the deltas of all later
    tasks belong to; it is trained in full, and is kept beside them.

    With ``student.train: full`` each task has a whole network of its own, the upper bound in bytes.

    Paper: Li et al., HALRP, arXiv 2311.15161.

    Example:
        >>> from distill.continual.strategies.bank import Bank
        >>> Bank(Bank.Settings()).head_per_task
        True
    """

    class Settings(Strategy.Settings):
        type: Literal["bank"] = "bank"
        base: Literal["pretrained", "first_task"] = Field(
            "pretrained", description="what the deltas change: the pretrained network, or the network of the first task"
        )

    paper: ClassVar[str] = "Li et al., HALRP, arXiv 2311.15161"
    head_per_task: ClassVar[bool] = True
    settings: Settings

    def start(self, fit: TaskFit) -> Start:
        if self.settings.base == "pretrained":
            return Start(fit.student)
        if fit.previous is None:
            return Start(fit.student.model_copy(update={"train": "full", "deltas": ()}))
        return Start(fit.student.model_copy(update={"network": self._base(fit)}))

    def close(self, fit: TaskFit, student: Student) -> None:
        write_part(fit, student)

    def parts(self, fit: TaskFit) -> tuple[Part, ...]:
        first = self.settings.base == "first_task" and fit.previous is not None
        network = self._base(fit) if first else fit.student.network
        earlier = fit.previous.parts if fit.previous else ()
        return (*earlier, read_part(fit.folder, fit.task.name, fit.classes, network))

    def _base(self, fit: TaskFit) -> NetworkSettings:
        """The network of the first task."""
        assert fit.previous is not None
        return merged_network(fit.student.network, fit.previous.first / MERGED)
