"""How models recognize classes whose labels were not read, alone and among all classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.report.items import Column, Item, Metric, Table, TableRow
from distill.run.context import RunContext
from distill.run.stage import Ref, Stage
from distill.stages.evaluate import Evaluation
from distill.transfer.text_head import unseen_classes


@dataclass(frozen=True)
class UnseenScores:
    """Row → name of a measure → its value, None where there are no images."""

    classes: int
    scores: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class EvaluateUnseen(Stage[UnseenScores]):
    """Scores the predictions of an evaluation for unseen and seen classes apart.

    ==========  ===================================================================================
    measure     images, and the classes that compete
    ==========  ===================================================================================
    top-1       of the unseen classes, among these
    top-5       likewise: the right class is among the five likeliest
    unseen      of the unseen classes, among all classes
    seen        of the seen classes, among all classes
    ==========  ===================================================================================

    Args:
        unseen: names of the classes, or how many the seed has chosen.
        evaluation: of all models.
    """

    unseen: tuple[str, ...] | int
    evaluation: Ref[Evaluation]

    def check(self, context: RunContext) -> None:
        unseen_classes(self.unseen, context.data.classes, context.seed)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"unseen": self.unseen}

    def run(self, context: RunContext, folder: Path) -> UnseenScores:
        unseen = torch.tensor(unseen_classes(self.unseen, context.data.classes, context.seed))
        scores = {}
        for name, own in context.get(self.evaluation).predictions.items():
            scores[name] = unseen_scores(own.logits, own.labels, unseen)
        return UnseenScores(len(unseen), scores)

    def load(self, context: RunContext, folder: Path) -> UnseenScores:
        return self.run(context, folder)

    def report(self, context: RunContext, output: UnseenScores) -> Iterable[Item]:
        names = ("top-1", "top-5", "unseen", "seen")
        columns = (Column(heading="model"), *(Column(heading=name, unit="percent") for name in names))
        rows = tuple(
            TableRow(cells=(model, *(own[name] for name in names)), strong=model == "student")
            for model, own in output.scores.items()
        )
        caption = (
            f"Top-1 and top-5 of {output.classes} classes whose labels were not read, among these (chance "
            f"{1 / output.classes:.1%}); unseen and seen: among all {len(context.data.classes)} classes."
        )
        yield Table(title="Unseen classes", columns=columns, rows=rows, caption=caption)
        for model, own in output.scores.items():
            for name in names:
                if (value := own[name]) is not None:
                    yield Metric(name=f"{name} of unseen classes, {model}", value=value, seed=context.seed)


def unseen_scores(logits_NK: Tensor, labels_N: Tensor, unseen: Tensor) -> dict[str, float | None]:
    """The measures of :class:`EvaluateUnseen`.

    Args:
        logits_NK: predictions.
        labels_N: negative: no label.
        unseen: numbers of the unseen classes.

    Returns:
        Name → fraction of images; None without images.
    """
    of_unseen = torch.isin(labels_N, unseen)
    own_NU, right_N = logits_NK[of_unseen][:, unseen], labels_N[of_unseen]
    top = unseen[own_NU.topk(min(5, len(unseen)), dim=1).indices]
    hits, everywhere = top == right_N[:, None], logits_NK.argmax(1) == labels_N
    seen = ~of_unseen & (labels_N >= 0)
    return {
        "top-1": _mean(hits[:, 0]),
        "top-5": _mean(hits.any(1)),
        "unseen": _mean(everywhere[of_unseen]),
        "seen": _mean(everywhere[seen]),
    }


def _mean(right: Tensor) -> float | None:
    return right.double().mean().item() if len(right) else None
