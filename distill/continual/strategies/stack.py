"""A stack of deltas: every task adds its own delta on top of those of the tasks before, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from augment.base import error_at
from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.direction import directions, mean_scales
from distill.continual.strategies.files import DELTA, read_part, write_delta
from distill.continual.strategies.sequential import FIT
from distill.deltas.adalora import AdaLoRA
from distill.deltas.attach import merge
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state
from distill.export.delta.algebra import compose
from distill.export.delta.io import load_delta
from distill.export.delta.model import open_delta, save_delta_file
from distill.models.network import Network, as_network, create_network
from distill.models.settings import StudentSettings
from distill.models.student import Student

OWN = "own-delta"


class Stack(Strategy):
    """``W_t = d_t(… d_1(W))``: the deltas of earlier tasks are frozen, and each task trains a new one after them.

    A new delta starts as the identity, so that a task begins exactly where the one before ended. The backbone stays the
    pretrained one: what is served is the file of the composed deltas, which grows with every task, and one head with a
    row for each class. The delta of each task is kept beside it.

    With ``scales: learned``, as SD-LoRA publishes it, the low-rank deltas of earlier tasks keep their directions, and
    each of them has one learned scale in each layer:
    ``W_t = W + Σ_{k<t} s_k · B_k A_k / (‖B_k‖ ‖A_k‖) + B_t A_t``. The file then has the deltas of all tasks, multiplied
    by their newest scales. Deviation: a scale starts at ``‖B_k‖ ‖A_k‖``, so that a task begins where the one before
    ended, where the authors' code starts at 0.8; the newest delta, which is trained as a whole, needs no scale.

    Papers: SD-LoRA, arXiv 2501.13198; InfLoRA, arXiv 2404.00228, without its orthogonal directions.

    Example:
        >>> from distill.continual.strategies.stack import Stack
        >>> Stack(Stack.Settings()).trains_deltas
        True
    """

    class Settings(Strategy.Settings):
        type: Literal["stack"] = "stack"
        scales: Literal["fixed", "learned"] = Field(
            "fixed",
            description="of the deltas of earlier tasks; learned: one for each delta and layer, as in SD-LoRA, for "
            "low_rank deltas",
        )

    paper: ClassVar[str] = "Wu et al., SD-LoRA, arXiv 2501.13198"
    trains_deltas: ClassVar[bool] = True
    carries: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    settings: Settings

    def check_student(self, student: StudentSettings) -> None:
        others = [entry.type for entry in student.deltas if entry.component not in (LowRank, AdaLoRA)]
        if self.settings.scales == "learned" and others:
            text = f"learned scales belong to low-rank deltas, not to {', '.join(others)}; take low_rank or adalora"
            raise error_at("strategy.scales", text)

    def start(self, fit: TaskFit) -> TaskStart:
        if fit.previous is None:
            return TaskStart(fit.student)
        if self.settings.scales == "learned":
            return self._scaled(fit, fit.previous)
        model = self._before(fit).model
        head = {f"model.{name}": tensor for name, tensor in head_state(model, classifier_names(model)).items()}
        before = fit.previous.folder / FIT
        return TaskStart(fit.student, None, head, fit.previous.classes, lambda: self._before(fit), before)

    def close(self, fit: TaskFit, student: Student) -> None:
        if fit.previous is None or self.settings.scales == "learned":
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

    def notes(self, folder: Path) -> Iterable[str]:
        if self.settings.scales == "learned" and (folder / DELTA).is_dir():
            *earlier, newest = mean_scales(open_delta(folder / DELTA).layers)
            if earlier:
                each = ", ".join(f"{scale:.3g}" for scale in earlier)
                yield f"scales of the deltas of earlier tasks, mean over layers: {each}; of this task: {newest:.3g}"

    def _scaled(self, fit: TaskFit, previous: LearnedTask) -> TaskStart:
        """New deltas after the frozen directions of all earlier ones."""
        file = open_delta(previous.folder / DELTA)
        entries, weights = directions(file.layers)
        student = fit.student.model_copy(update={"deltas": (*entries, *fit.student.deltas), "start": None})
        weights |= {f"model.{name.partition('/')[2]}": t for name, t in file.values.items() if name.startswith("head/")}
        return TaskStart(student, None, weights, previous.classes, carried=previous.folder / FIT)

    def _before(self, fit: TaskFit) -> Network:
        """The network after the task before, with its deltas in its weights."""
        assert fit.previous is not None
        network = create_network(fit.student.network, len(fit.previous.classes))
        model = load_delta(fit.previous.folder / DELTA, network.model)
        merge(model)
        return replace(network, model=as_network(model).model)
