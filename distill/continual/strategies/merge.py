"""Every task trains a delta of its own from the pretrained network; the deltas are merged into one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.continual.learned import LearnedNetwork, folder_bytes
from distill.continual.regularizers.ewc import fisher
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.files import DELTA, read_part, write_delta
from distill.deltas.attach import deltas, merge
from distill.export.delta.io import load_delta
from distill.export.delta.mean import mean, ties
from distill.export.delta.model import DeltaFile, open_delta, save_delta_file
from distill.files import write_atomic
from distill.models.network import create_network
from distill.models.student import Student

OWN, FISHER = "own-delta", "fisher.json"


class Merge(Strategy):
    """Task deltas over one backbone, merged after each task: ``Δ = mean of Δ_1 … Δ_t``; one network is served.

    ``average``: equal weights. ``ties``: of each delta the largest entries of each layer, of these the mean of those
    whose sign prevails. ``fisher``: weights in proportion to the Fisher information of a task's images about the layer,
    ``F = Σ_i mean_x (∂ log p(y|x) / ∂W_i)²`` with y drawn from p: one number for each layer instead of one for each
    weight, so that a mean of low-rank deltas stays low-rank and little is kept.

    The heads are united: each class has the row of its own task, or the mean of its rows where several tasks have it.
    What a task trained depends on its own images alone. Bytes of the result: the sum of those of the tasks for
    ``average`` and ``fisher`` of low-rank deltas, of the changed weights for ``ties``.

    Papers: Ilharco et al., arXiv 2212.04089; Yadav et al., TIES, arXiv 2306.01708; Matena & Raffel, Fisher-weighted
    averaging, arXiv 2111.09832; in streams: CoFiMA, arXiv 2312.08977.

    Example:
        >>> from distill.continual.strategies.merge import Merge
        >>> Merge(Merge.Settings(by="ties", density=0.1)).settings.density
        0.1
    """

    class Settings(Strategy.Settings):
        type: Literal["merge"] = "merge"
        by: Literal["average", "ties", "fisher"] = Field(
            "average", description="how the deltas of the tasks are merged"
        )
        density: float = Field(0.2, gt=0, le=1, description="ties: fraction of each layer's entries that is kept")
        images: int = Field(
            256, ge=1, description="fisher: training images of a task to estimate it with, by a keyed hash"
        )

    paper: ClassVar[str] = "Yadav et al., TIES, arXiv 2306.01708"
    head_per_task: ClassVar[bool] = True
    unites_heads: ClassVar[bool] = True
    trains_deltas: ClassVar[bool] = True
    settings: Settings

    def start(self, fit: TaskFit) -> TaskStart:
        return TaskStart(fit.student)

    def close(self, fit: TaskFit, student: Student) -> None:
        write_delta(fit, student, fit.folder / OWN)
        if self.settings.by == "fisher":
            write_atomic(fit.folder / FISHER, json.dumps(self._fisher(fit)).encode())
        folders = [*fit.earlier, fit.folder]
        files = [open_delta(folder / OWN) for folder in folders]
        backbone = create_network(fit.student.network, len(files[-1].manifest.labels)).model
        if self.settings.by == "ties":
            merged = ties(files, backbone, self.settings.density)
        elif self.settings.by == "fisher":
            merged = mean(files, backbone, [json.loads((folder / FISHER).read_text()) for folder in folders])
        else:
            merged = mean(files, backbone)
        save_delta_file(fit.folder / DELTA, with_united_head(merged.file, files), merged.made_by)

    def parts(self, fit: TaskFit) -> tuple[LearnedNetwork, ...]:
        folders = [*fit.earlier, fit.folder]
        kept = sum(folder_bytes(folder / OWN) for folder in folders)
        classes = tuple(dict.fromkeys((*(fit.previous.classes if fit.previous else ()), *fit.classes)))
        return (read_part(fit.folder, fit.task.name, classes, fit.student.network, kept),)

    def _fisher(self, fit: TaskFit) -> dict[str, float]:
        """Layer → F of the task's images, at the weights that its delta gives."""
        network = create_network(fit.student.network, len(fit.classes))
        model = load_delta(fit.folder / OWN, network.model)
        layers = dict.fromkeys(site.name.partition("[")[0] for site in deltas(model))
        merge(model)
        weights = {layer: model.get_parameter(f"{layer}.weight") for layer in layers}
        for weight in weights.values():
            weight.requires_grad_()
        device = next(iter(weights.values())).device
        images = ((views.to(device), ids) for views, ids in fit.images)
        values = fisher(model, weights, images, fit.seed, self.settings.images)
        return {layer: float(value.sum()) for layer, value in values.items()}


def with_united_head(merged: DeltaFile, files: Sequence[DeltaFile]) -> DeltaFile:
    """A merged file with the rows of all heads, by class; the mean of the rows of a class that several have.

    Args:
        merged: of which the deltas are taken.
        files: with their heads and labels, in the order of the tasks.
    """
    labels = tuple(dict.fromkeys(label for file in files for label in file.manifest.labels))
    names = [name for name in files[-1].values if name.startswith("head/")]
    united: dict[str, Tensor] = {}
    for name in names:
        rows: dict[str, list[Tensor]] = {label: [] for label in labels}
        for file in files:
            for label, row in zip(file.manifest.labels, file.values[name], strict=True):
                rows[label].append(row)
        united[name] = torch.stack([torch.stack(own).mean(0) for own in rows.values()])
    manifest = merged.manifest.model_copy(update={"labels": labels, "num_classes": len(labels)})
    return replace(merged, manifest=manifest, values={**merged.values, **united})
