"""The part ``unsupervised`` of ``transfer.py``: clusters, neighbors and anomalies of label-free features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import source
from transfer_lab import Figure, Lab, figure, run, seeds

from distill.config import read_run
from distill.models.features import Features
from distill.run.context import open_context
from distill.run.folder import RunFolder, read_record
from distill.run.runner import finish
from distill.stages.pooled_features import PooledFeatures
from distill.training.evaluate import Predictions
from distill.transfer.anomaly.mahalanobis import Mahalanobis
from distill.transfer.anomaly.threshold import AnomalyScores

MODELS = ("backbone", "teacher", "student")
SIZE = (128, 128)


def unsupervised(lab: Lab) -> Iterator[Figure]:
    """Flowers without labels; these score what comes out."""
    of = seeds(lab)
    data = {"source": source(lab.given.data / "flowers61", lab.given.out), "workers": 0, "on_device": True}
    made: dict[str, list[float]] = {}
    for seed in of:
        changes = {"seed": seed, "data": data, **({"training": {"epochs": 1}} if lab.given.quick else {})}
        line = run(lab, "unsupervised", "clusters.yaml", changes)
        key = {"part": "unsupervised", "anomaly": "one class against all others", "seed": seed, "changes": changes}
        areas = lab.once({**key, "changes": {**changes, "data": None}}, lambda: _anomalies(Path(line["folder"])))  # noqa: B023
        for model in MODELS:
            measured = {
                "kmeans_nmi": line["metrics"][f"k-means NMI of {model}"],
                "kmeans_ari": line["metrics"][f"k-means ARI of {model}"],
                "kmeans_accuracy": line["metrics"][f"k-means accuracy of {model}"],
                "knn_accuracy": line["metrics"][f"kNN accuracy of {model}"],
                "anomaly_auroc": areas[model],
            }
            for name, value in measured.items():
                made.setdefault(f"{name}_{model}", []).append(value)
    detail = (
        f"61 flowers, 128 px, no label trained on; anomalies: mean over the 61 classes as the normal one; seeds {of}"
    )
    for name, values in made.items():
        yield figure(name, values, "fraction", detail)
    gain = [student - backbone for student, backbone in zip(made["kmeans_nmi_student"], made["kmeans_nmi_backbone"])]
    yield figure("kmeans_nmi_student_minus_backbone", gain, "fraction", detail)


def _anomalies(folder: Path) -> dict[str, Any]:
    """Model → AUROC of Mahalanobis distances, each class in turn as the normal one, mean over classes."""
    experiment, _ = read_run(folder)
    stages = [stage for stage in experiment.plan() if stage.name in ("teacher", "student") or "features" in stage.name]
    areas: dict[str, Any] = {}
    with open_context(experiment) as context:
        context.folder = RunFolder(folder, read_record(folder))
        for stage in stages:
            finish(stage, context, folder / stage.name)  # which are finished, or load a pretrained network
            if isinstance(stage, PooledFeatures):
                splits = context.get(stage.output).splits
                classes = range(len(context.data.classes))
                each = [_area(splits["train"], splits["test"], number) for number in classes]
                areas[stage.name.removeprefix("features-")] = mean(each)
    return areas


def _area(train: Predictions, test: Predictions, normal: int) -> float:
    method = Mahalanobis(Mahalanobis.Settings())
    state = method.fit([Features(pooled=train.logits[train.labels == normal])], seed=0)
    scores, _ = method.score(Features(pooled=test.logits), state, SIZE)
    area = AnomalyScores.of(scores, (test.labels == normal).numpy(), limit=0.0).auroc
    assert area is not None
    return area
