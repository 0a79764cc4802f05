"""Fine-tunes or probes one of the teacher's networks on the labeled data; runs share equal fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from augment.policy import AugmentSettings
from distill.data.base import UNLABELED
from distill.data.experiment_data import ExperimentData
from distill.models.network import Network
from distill.models.settings import LearningSettings, NetworkSettings
from distill.models.student import Student
from distill.objectives.ce import CrossEntropy
from distill.report.items import Item
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import is_first_rank
from distill.run.predict import predict_pooled
from distill.run.stage import Stage, StageError
from distill.run.teacher_network import check_file, make_network
from distill.run.trial import trying
from distill.stages.outputs import TeacherNetworks, check_classes, fit_notes, network_notes
from distill.training.fit import load_result, load_summary, save_result
from distill.training.probe import fit_probe
from distill.training.settings import FitTeacherSettings

IGNORED = {"on_device", "workers", "worker_timeout", "start_method"}
"""Settings of the data that do not change the result of a fit."""


@dataclass(frozen=True)
class FitTeacher(Stage[TeacherNetworks]):
    """Trains one network of the teacher.

    Args:
        network: the network, and the weights that it starts from.
        fit: method, labels, training.
        augment: how its views are made.
    """

    network: NetworkSettings
    fit: FitTeacherSettings
    augment: AugmentSettings

    def check_files(self) -> None:
        check_file(self.network, "teacher.networks")

    def check(self, context: RunContext) -> TeacherNetworks:
        """Build the network and try its fit. Raises ``StageError`` if it cannot be trained on the labels."""
        self._check_labels(context)
        own = replace(context, data=self._data(context))
        student, network = self._start(context)
        if self.fit.method == "finetune":
            self._fit_spec(own).check(student, self.name)
            return TeacherNetworks((network,))
        with trying(f"{self.name}: the features of {network.origin}"):
            classifier = network.model.get_classifier()  # type: ignore[operator]
            features = predict_pooled(own, network, own.labeled_loader(network.input)).logits
            shape = list(getattr(classifier, "weight", torch.empty(0)).shape)
            if shape != [len(own.data.classes), features.shape[1]]:
                raise StageError(
                    f"{self.name}: fit_teacher.method probe needs a linear classifier on the pooled features, "
                    f"[{len(own.data.classes)}, {features.shape[1]}]; that of {network.origin} is {shape}"
                )
        return TeacherNetworks((network,))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        data = self._data(context)
        ignored = IGNORED | ({"label_seed"} if data.settings.labels_per_class is None else set())
        self._check_labels(context)
        return {
            "network": self.network.model_dump(mode="json", exclude={"weight", "labels"}),
            # The file or folder that the network is loaded from may hold other weights later.
            "weights": self._start(context)[0].backbone.sha256,
            "fit": self.fit.model_dump(mode="json", exclude={"training": {"loggers"}}),
            "augment": self.augment.model_dump(mode="json"),
            "data": [data.fingerprint(), data.settings.model_dump(mode="json", exclude=ignored)],
        }

    def store(self, context: RunContext, digest: str) -> Path:
        return context.root / "teachers" / digest

    def run(self, context: RunContext, folder: Path) -> TeacherNetworks:
        own = replace(context, data=self._data(context))
        student, network = self._start(context)
        if self.fit.method == "finetune":
            return TeacherNetworks((network,), (self._fit_spec(own).fit(student, folder, self.name),))
        probe = fit_probe(
            predict_pooled(own, network, own.labeled_loader(network.input)),
            predict_pooled(own, network, own.loader("val", network.input)),
            len(own.data.classes),
        )
        probe.into(network.model.get_classifier())  # type: ignore[operator]
        if is_first_rank():
            save_result(student, folder)
        return TeacherNetworks((network,))

    def load(self, context: RunContext, folder: Path) -> TeacherNetworks:
        student, network = self._start(context)
        load_result(student, folder)
        return TeacherNetworks((network,), (load_summary(folder),) if self.fit.method == "finetune" else ())

    def report(self, context: RunContext, output: TeacherNetworks) -> Iterable[Item]:
        for fit in output.fits:
            yield from fit_notes(self.name, fit)
        yield from network_notes(output.networks)

    def _check_labels(self, context: RunContext) -> None:
        if not context.data.classes:
            raise StageError("fit_teacher needs labels, and this source has no classes")
        check_classes(context.data)
        data = self._data(context)
        if self.fit.method == "finetune":
            return
        if (np.unique(data.subset("train").labels) != UNLABELED).sum() < 2:
            raise StageError(f"{self.name}: fit_teacher.method probe needs labeled images of at least two classes")
        if not data.has_split("val"):
            raise StageError(f"{self.name}: fit_teacher.method probe needs a validation split; set data.val_fraction")

    def _fit_spec(self, own: RunContext) -> FitSpec:
        return FitSpec(own, None, (CrossEntropy.Settings(),), self.augment, self.fit.training)

    def _data(self, context: RunContext) -> ExperimentData:
        return context.data if self.fit.labels == "same" else context.data.with_all_labels()

    def _start(self, context: RunContext) -> tuple[Student, Network]:
        """A student that trains all weights of the network, and the network before its fit."""
        torch.manual_seed(context.seed)
        network = make_network(self.network, num_classes=len(context.data.classes))
        settings = LearningSettings(train="full", batch_norm=self.fit.batch_norm)
        return Student(network, settings), network
