"""Branch-Tuning: deltas beside frozen layers, which are merged into the weights after every task."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from distill.continual.learned import LearnedNetwork
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import MERGED, merged_network, read_part, write_part
from distill.continual.strategies.sequential import FIT
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state
from distill.models.network import create_network
from distill.models.student import Student


class MergeAndGo(Strategy):
    """A task trains new deltas over the network that the tasks before it left; afterwards they are merged into it.

    The network stays as large and as fast as it was. New deltas start as the identity, so that the network of a task
    begins exactly as the one before it ended. The deltas of the momentum network are merged too; it and the state of
    objectives with ``carry: stream`` go on.

    Paper: Liu et al., Branch-Tuning, arXiv 2403.18266, which trains the first task in full.

    Example:
        >>> from distill.continual.strategies.merge_and_go import MergeAndGo
        >>> MergeAndGo(MergeAndGo.Settings(first="full")).settings.first
        'full'
    """

    class Settings(Strategy.Settings):
        type: Literal["merge_and_go"] = "merge_and_go"
        first: Literal["deltas", "full"] = Field(
            "deltas", description="what the first task trains: deltas, or every weight, as where nothing is pretrained"
        )

    paper: ClassVar[str] = "Liu et al., Branch-Tuning, arXiv 2403.18266"
    carries: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    settings: Settings

    def start(self, fit: TaskFit) -> TaskStart:
        if fit.previous is None:
            if self.settings.first != "full":
                return TaskStart(fit.student)
            return TaskStart(fit.student.model_copy(update={"train": "full", "deltas": (), "start": None}))
        network = merged_network(fit.student.network, fit.previous.folder / MERGED)
        model = create_network(network).model
        head = {f"model.{name}": tensor for name, tensor in head_state(model, classifier_names(model)).items()}
        student = fit.student.model_copy(update={"network": network, "start": None})
        return TaskStart(student, None, head, fit.previous.classes, carried=fit.previous.folder / FIT)

    def close(self, fit: TaskFit, student: Student) -> None:
        write_part(fit, student, merged=True)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        return (read_part(fit.folder, fit.task.name, fit.classes, fit.student.network),)
