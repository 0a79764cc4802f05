"""A bank of deltas: one delta and one head for each task over one backbone, so that no task is forgotten."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from augment.base import error_at
from distill.continual.errors import ContinualError
from distill.continual.learned import LearnedNetwork, folder_bytes
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import DELTA, MERGED, merged_network, read_part, write_part
from distill.continual.strategies.prior import start_from_prior, write_prior
from distill.deltas.attach import merge
from distill.deltas.base import Delta, StructuralDelta, tensor_bytes
from distill.deltas.ranked import RankedDelta
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta.model import open_delta, save_delta_file
from distill.export.delta.truncate import can_truncate, truncate
from distill.models.settings import NetworkSettings, StudentSettings
from distill.models.student import Student

REPRUNED = "repruned"


class Bank(Strategy):
    """Every task trains its own delta and head from the same backbone. What a task wrote is never changed.

    With ``base: pretrained`` a task's delta depends on its own images alone, so the order of the tasks changes nothing.
    With ``base: first_task``, as HALRP publishes it, the first task trains the network that the deltas of all later
    tasks belong to; it is trained in full, and is kept beside them.

    ``growth`` bounds the bytes of all delta files together, heads included. Neither the number of tasks nor of classes
    is known beforehand, so a task takes what its delta needs, and one that does not fit is truncated to what is left
    (an error if that is less than one rank). With ``reprune``, as HALRP publishes it, the deltas of all tasks are
    truncated to equal parts of the bound instead: then the logits of earlier tasks change. The report has the accuracy
    of each of them before and after.

    Deviation from HALRP: the ranks of smallest singular values are left out, where the paper sets the smallest entries
    of K1 and K2 to zero and counts the others. Zeros in a dense file take as many bytes as other numbers.

    With ``prior: reptile`` a task's deltas start from the mean of those that the tasks before trained, for tasks of few
    images; see :func:`distill.training.reptile.reptile`. Then a task depends on those before it.

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
        growth: float | None = Field(
            None,
            gt=0,
            description="largest bytes of all delta files, as a fraction of the network's weights in float32",
        )
        reprune: bool = Field(
            False, description="beyond growth, truncate the deltas of all tasks to equal parts, not the newest alone"
        )

        prior: Literal["none", "reptile"] = Field(
            "none",
            description="what deltas start from: none: the identity; reptile: the mean of the deltas of earlier "
            "tasks, which share the first task's ranks",
        )

        @model_validator(mode="after")
        def _bound_to_prune_to(self) -> Self:
            if self.reprune and self.growth is None:
                raise error_at("reprune", "there is no bound to prune to; set growth")
            return self

    paper: ClassVar[str] = "Li et al., HALRP, arXiv 2311.15161"
    head_per_task: ClassVar[bool] = True
    settings: Settings

    @property
    def keeps_networks(self) -> bool:
        return super().keeps_networks and not self.settings.reprune

    def check_student(self, student: StudentSettings) -> None:
        if self.settings.growth is None:
            return
        if student.train == "full" or not student.deltas:
            raise error_at("strategy.growth", "bounds the bytes of deltas, and the student has none; name them")
        kinds = {entry.type: entry.component for entry in student.deltas}
        methods = {name: method for name, method in kinds.items() if method is not None and issubclass(method, Delta)}
        whole = [name for name, method in methods.items() if issubclass(method, StructuralDelta)]
        whole += [n for n, method in methods.items() if issubclass(method, RankedDelta) and not can_truncate(method)]
        if not any(map(can_truncate, methods.values())):
            whole = list(methods)
        if whole:
            text = f"{', '.join(whole)} cannot be truncated to fewer bytes; leave growth out, or take low_rank or halrp"
            raise error_at("strategy.growth", text)

    def start(self, fit: TaskFit) -> TaskStart:
        start = self._without_prior(fit)
        if self.settings.prior == "none":
            return start
        prepared, weights = start_from_prior(fit)
        return replace(start, prepared=prepared, weights=weights)

    def _without_prior(self, fit: TaskFit) -> TaskStart:
        if self.settings.base == "pretrained":
            return TaskStart(fit.student)
        if fit.previous is None:
            return TaskStart(fit.student.model_copy(update={"train": "full", "deltas": (), "start": None}))
        return TaskStart(fit.student.model_copy(update={"network": self._base(fit), "start": None}))

    def close(self, fit: TaskFit, student: Student) -> None:
        write_part(fit, student)
        of_base = self.settings.base == "first_task" and fit.previous is None
        if self.settings.prior == "reptile" and not of_base:
            write_prior(fit, student)
        if self.settings.growth is None or student.full:
            return
        weights = backbone_state(student.model, classifier_names(student.model))
        bound = int(self.settings.growth * tensor_bytes(weights.values()))
        folders = {fit.task.name: fit.folder / DELTA, **self._earlier(fit)}
        sizes = {name: folder_bytes(folder) for name, folder in folders.items()}
        if sum(sizes.values()) <= bound:
            return
        if not self.settings.reprune:
            left = bound - (sum(sizes.values()) - sizes[fit.task.name])
            shrink(folders[fit.task.name], folders[fit.task.name], left, student.model)
            return
        for name, folder in folders.items():
            if sizes[name] > bound // len(folders):
                own = name == fit.task.name
                target = folder if own else fit.folder / REPRUNED / name / DELTA
                shrink(folder, target, bound // len(folders), student.model)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        first = self.settings.base == "first_task" and fit.previous is not None
        network = self._base(fit) if first else fit.student.network
        earlier = []
        for part in fit.previous.parts if fit.previous else ():
            again = fit.folder / REPRUNED / part.name
            made = read_part(again, part.name, part.classes, network) if again.is_dir() else part
            earlier.append(replace(made, trained=part.trained, changed=again.is_dir(), kept=made.served))
        return (*earlier, read_part(fit.folder, fit.task.name, fit.classes, network))

    def notes(self, folder: Path) -> Iterable[str]:
        if names := sorted(own.name for own in (folder / REPRUNED).glob("*")):
            yield f"the deltas of {', '.join(names)} were truncated again to stay within bank.growth"

    def _earlier(self, fit: TaskFit) -> dict[str, Path]:
        """Task → the folder of its delta, as it was truncated last; those with a whole network are left out."""
        folders = {}
        for number, part in enumerate(fit.previous.parts if fit.previous else ()):
            own = fit.earlier[number] / DELTA
            again = [folder / REPRUNED / part.name / DELTA for folder in fit.earlier]
            newest = [folder for folder in (own, *again) if folder.is_dir()]
            if newest:
                folders[part.name] = newest[-1]
        return folders

    def _base(self, fit: TaskFit) -> NetworkSettings:
        """The network of the first task."""
        assert fit.previous is not None
        return merged_network(fit.student.network, fit.previous.first / MERGED)


def shrink(folder: Path, target: Path, most: int, skeleton: nn.Module) -> None:
    """Truncate a delta file to a number of bytes.

    Args:
        folder: of the file.
        target: where to write the result.
        most: bytes of the folder that is written.
        skeleton: a model of its architecture, for shapes.

    Raises:
        ContinualError: it cannot be made so small.
    """
    file = open_delta(folder)
    budget = most - (folder_bytes(folder) - file.delta_bytes)
    plain = copy.deepcopy(skeleton)
    merge(plain)
    for _ in range(8):  # names and settings of layers with other ranks take bytes too
        try:
            result = truncate(file, plain, budget=budget)
        except ExportError as error:
            raise ContinualError(
                f"strategy.growth: {most:,} bytes are left for a delta of {folder_bytes(folder):,} bytes ({error}); "
                "raise growth, or set reprune"
            ) from error
        save_delta_file(target, result.file, result.made_by)
        if folder_bytes(target) <= most:
            return
        budget -= folder_bytes(target) - most
    raise ContinualError(f"strategy.growth: the truncated delta still has {folder_bytes(target):,} of {most:,} bytes")
