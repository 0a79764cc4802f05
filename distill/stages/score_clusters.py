"""Clusters and nearest neighbors of frozen features, for student, backbone and teacher side by side."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from distill.data.base import UNLABELED, Split
from distill.files import write_atomic
from distill.report.items import Cell, Column, Files, Headline, Item, Metric, Note, Table, TableRow
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage, StageError
from distill.stages.evaluate import Evaluation
from distill.stages.pooled_features import SplitFeatures
from distill.training.evaluate import Predictions
from distill.training.knn import predict_knn
from distill.transfer.clusters import agreement, assign, k_means

SCORES, ASSIGNED = "scores.json", "clusters.csv"
MEASURES = ("nmi", "ari", "accuracy", "knn")


@dataclass(frozen=True)
class GroupScores(Evaluation):
    """Scores of the features of several models.

    Args:
        scores: model → measure → value; measures are ``nmi``, ``ari``, ``accuracy`` and ``knn``, as far as they are
            asked for and there are labels.
        sizes: model → number of images of evaluation in each cluster.
        folder: with the cluster of every image.
    """

    scores: dict[str, dict[str, float]]
    sizes: dict[str, list[int]]
    folder: Path


@dataclass(frozen=True)
class ScoreClusters(Stage[GroupScores]):
    """k-means on the training images' features, and the images of evaluation in their nearest clusters.

    Labels are read here alone, and only to score: clusters are compared with classes, and the k nearest labeled
    training images vote on the class of an image.

    Args:
        names: of the models; the last one is the subject of the run.
        models: their features, of ``train`` and ``split``.
        split: that is evaluated.
        clusters: their number; 0: as many as the data has classes; None: no clusters.
        neighbors: k of the nearest neighbors; None: they are not scored.
        temperature: of their votes.
    """

    names: tuple[str, ...]
    models: tuple[Ref[SplitFeatures], ...]
    split: Split
    clusters: int | None
    neighbors: int | None
    temperature: float

    def check(self, context: RunContext) -> GroupScores:
        train = context.data.subset("train")
        if self.clusters is not None:
            count = self._count(context)
            if count > len(train):
                raise StageError(f"clusters.k: {count} clusters of {len(train)} training images")
        if self.neighbors is not None and not context.data.labeled_count:
            raise StageError(
                "knn: neighbors vote with their labels, and no training image has one; leave knn out, or"
                " data.labels_per_class (no label is trained on)"
            )
        scores = {name: dict.fromkeys(self._measures(context), 0.0) for name in self.names}
        return GroupScores(self.split, {}, (), (), scores, {}, Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        names = ("names", "split", "clusters", "neighbors", "temperature")
        labels = context.data.settings.model_dump(mode="json", include={"labels_per_class", "label_seed"})
        return {**{name: getattr(self, name) for name in names}, "labels": labels, "data": context.data.fingerprint()}

    def run(self, context: RunContext, folder: Path) -> GroupScores:
        scores: dict[str, dict[str, float]] = {}
        sizes: dict[str, list[int]] = {}
        assigned: dict[str, Tensor] = {}
        for name, ref in zip(self.names, self.models):
            splits = context.get(ref).splits
            train, other = splits["train"], splits[self.split]
            scores[name] = {}
            if self.clusters is not None:
                with context.waiting(f"{self.name}: clusters of the {name}"):
                    centers = k_means(train.logits, self._count(context), context.seed)
                own = assign(other.logits, centers)
                assigned[name] = own
                sizes[name] = np.bincount(own.numpy(), minlength=len(centers)).tolist()
                scores[name] |= _agreement(other, own)
            if self.neighbors is not None:
                classes = len(context.data.classes)
                votes = predict_knn(train, other, classes, self.neighbors, self.temperature).accuracy()
                if votes is not None:
                    scores[name]["knn"] = votes
        if is_first_rank():
            if assigned:
                ids = _names(context, self.split, context.get(self.models[0]).splits[self.split].ids)
                write_atomic(folder / ASSIGNED, _table_of(ids, assigned).encode())
            content = {
                "scores": scores,
                "sizes": sizes,
                "metrics": [m.model_dump() for m in self._metrics(context, scores)],
            }
            write_atomic(folder / SCORES, json.dumps(content, indent=2).encode())
        return self._result(context, scores, sizes, folder)

    def load(self, context: RunContext, folder: Path) -> GroupScores:
        content = json.loads((folder / SCORES).read_text())
        return self._result(context, content["scores"], content["sizes"], folder)

    def report(self, context: RunContext, output: GroupScores) -> Iterable[Item]:
        subject = output.scores[self.names[-1]]
        titles = {"nmi": "NMI", "ari": "ARI", "accuracy": "cluster accuracy", "knn": f"{self.neighbors} neighbors"}
        measures = [name for name in MEASURES if name in subject]
        for name in ("nmi", "knn"):
            if name in subject:
                what = {"nmi": "NMI of the student's clusters", "knn": "accuracy of the student's nearest neighbors"}
                yield Headline(value=subject[name], unit="percent", what=what[name])
        columns = [Column(heading="features")]
        columns += [Column(heading=titles[name], unit="percent", rank=rank) for rank, name in enumerate(measures)]
        if any(output.sizes.values()):
            columns.append(Column(heading="largest cluster", unit="count", rank=5))
        rows = []
        for name in self.names:
            cells: list[Cell] = [name, *(output.scores[name].get(measure) for measure in measures)]
            if any(output.sizes.values()):
                cells.append(float(max(output.sizes[name])))
            rows.append(TableRow(cells=tuple(cells), strong=name == self.names[-1]))
        count = self._count(context) if self.clusters is not None else 0
        parts = [f"{count} clusters of the training images, each image of {self.split} in the nearest one"] * bool(
            count
        )
        parts += [f"votes of {self.neighbors} labeled training images, exp(cosine / {self.temperature:g})"] * bool(
            self.neighbors
        )
        yield Table(
            title=f"Features on {self.split}",
            columns=tuple(columns),
            rows=tuple(rows),
            caption="; ".join(parts) + ". Scores in %. Labels were read for these scores alone.",
        )
        if count and not measures:
            yield Note(text=f"no image of {self.split} has a label, so clusters cannot be compared with classes")
        if (output.folder / ASSIGNED).is_file():
            yield Files(paths={"clusters": output.folder / ASSIGNED})
        yield from output.metrics

    def _result(
        self, context: RunContext, scores: dict[str, dict[str, float]], sizes: dict[str, list[int]], folder: Path
    ) -> GroupScores:
        return GroupScores(self.split, {}, (), tuple(self._metrics(context, scores)), scores, sizes, folder)

    def _metrics(self, context: RunContext, scores: dict[str, dict[str, float]]) -> list[Metric]:
        titles = {"nmi": "k-means NMI", "ari": "k-means ARI", "accuracy": "k-means accuracy", "knn": "kNN accuracy"}
        return [
            Metric(name=f"{titles[measure]} of {name}", value=value, seed=context.seed)
            for name, own in scores.items()
            for measure, value in own.items()
        ]

    def _measures(self, context: RunContext) -> list[str]:
        labeled = bool((context.data.subset(self.split).labels != UNLABELED).any())
        of_clusters = ["nmi", "ari", "accuracy"] if self.clusters is not None else []
        return [*of_clusters, *(["knn"] if self.neighbors is not None else [])] if labeled else []

    def _count(self, context: RunContext) -> int:
        count = self.clusters or len(context.data.classes)
        if count < 2:
            why = "the data has no classes" if not count else "the data has one class"
            raise StageError(f"clusters.k: {why}; set the number of clusters")
        return count


def _agreement(other: Predictions, clusters: Tensor) -> dict[str, float]:
    """Scores of the images that have a label; none if no image has one."""
    labeled = other.labels != UNLABELED
    if not labeled.any():
        return {}
    return asdict(agreement(other.labels[labeled].numpy(), clusters[labeled].numpy()))


def _names(context: RunContext, split: Split, ids: Tensor) -> list[str]:
    subset = context.data.subset(split)
    by_key = dict(zip(subset.keys.tolist(), subset.ids))
    return [by_key[key] for key in ids.tolist()]


def _table_of(ids: list[str], assigned: Mapping[str, Tensor]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", *assigned])
    writer.writerows(zip(ids, *(own.tolist() for own in assigned.values())))
    return text.getvalue()
