"""A stack of deltas: every task adds its own delta on top of those of the tasks before, which stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from distill.continual.learned import LearnedNetwork
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import DELTA, read_part, write_delta
from distill.continual.strategies.sequential import FIT
from distill.deltas.attach import merge
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state
from distill.export.delta.algebra import compose
from distill.export.delta.io import load_delta
from distill.export.delta.model import open_delta, save_delta_file
from distill.models.network import Network, as_network, create_network
from distill.models.student import Student

OWN = "own-delta"


class Stack(Strategy):
    """``W_t = d_t(… d_1(W))``: the deltas of earlier tasks are frozen, and each task trains a new one after them.

    A new delta starts as the identity, so that a task begins exactly where the one before ended. The backbone stays the
    pretrained one: what is served is the file of the composed deltas, which grows with every task, and one head with a
    row for each class. The delta of each task is kept beside it.

    Papers: InfLoRA, arXiv 2404.00228, and SD-LoRA, arXiv 2501.13198, without their orthogonal directions and trained
    scales of earlier deltas.

    Example:
        >>> from distill.continual.strategies.stack import Stack
        >>> Stack(Stack.Settings()).trains_deltas
        True
    """

    class Settings(Strategy.Settings):
        type: Literal["stack"] = "stack"

    paper: ClassVar[str] = "Liang & Li, InfLoRA, arXiv 2404.00228"
    trains_deltas: ClassVar[bool] = True
    carries: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    settings: Settings

    def start(self, fit: TaskFit) -> TaskStart:
        if fit.previous is None:
            return TaskStart(fit.student)
        model = self._before(fit).model
        head = {f"model.{name}": tensor for name, tensor in head_state(model, classifier_names(model)).items()}
        before = fit.previous.folder / FIT
        return TaskStart(fit.student, None, head, fit.previous.classes, lambda: self._before(fit), before)

    def close(self, fit: TaskFit, student: Student) -> None:
        if fit.previous is None:
            write_delta(fit, student, fit.folder / DELTA)
            return
        write_delta(fit, student, fit.folder / OWN)
        before, own = open_delta(fit.previous.folder / DELTA), open_delta(fit.folder / OWN)
        about = {"backbone": before.manifest.backbone, "origin": before.manifest.origin}
        on_backbone = replace(own, manifest=own.manifest.model_copy(update=about))
        composed = compose(before, on_backbone, head="second")
        save_delta_file(fit.folder / DELTA, composed.file, composed.made_by)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        return (read_part(fit.folder, fit.task.name, fit.classes, fit.student.network),)

    def _before(self, fit: TaskFit) -> Network:
        """The network after the task before, with its deltas in its weights."""
        assert fit.previous is not None
        network = create_network(fit.student.network, len(fit.previous.classes))
        model = load_delta(fit.previous.folder / DELTA, network.model)
        merge(model)
        return replace(network, model=as_network(model).model)
