"""A control: logistic regression on the frozen backbone's pooled features, with the student's labels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from distill.data.base import UNLABELED
from distill.files import write_atomic
from distill.models.network import Network
from distill.models.settings import NetworkSettings
from distill.report.items import Item, Note
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import predict_pooled
from distill.run.stage import Stage
from distill.run.trial import trying
from distill.stages.outputs import TrainedProbe, pretrained_networks
from distill.training.probe import LinearProbe, fit_probe

TENSORS = "probe.safetensors"


@dataclass(frozen=True)
class FitLinearProbe(Stage[TrainedProbe | None]):
    """Fits the probe; the output is None without labels of two classes, or without a validation split.

    Args:
        network: the backbone.
    """

    network: NetworkSettings

    def check(self, context: RunContext) -> None:
        if self._possible(context):
            with trying(f"{self.name}: the pooled features of {self.network.model}"):
                network = self._network(context)
                predict_pooled(context, network, context.labeled_loader(network.input))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        data = context.data.fingerprint(), context.data.settings.model_dump(mode="json")
        return {"network": self.network.model_dump(mode="json"), "data": data}

    def run(self, context: RunContext, folder: Path) -> TrainedProbe | None:
        if not self._possible(context):
            return None
        begun = time.perf_counter()
        network = self._network(context)
        train = predict_pooled(context, network, context.labeled_loader(network.input))
        held_out = predict_pooled(context, network, context.loader("val", network.input))
        probe = fit_probe(train, held_out, len(context.data.classes))
        seconds = time.perf_counter() - begun
        if is_first_rank():
            numbers = torch.tensor([probe.strength, seconds], dtype=torch.float64)
            tensors = {"weight": probe.weight, "bias": probe.bias, "strength, seconds": numbers}
            write_atomic(folder / TENSORS, safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}))
        return self._trained(context, probe, network, seconds)

    def load(self, context: RunContext, folder: Path) -> TrainedProbe | None:
        if not (folder / TENSORS).is_file():
            return None
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        strength, seconds = tensors["strength, seconds"].tolist()
        probe = LinearProbe(tensors["weight"], tensors["bias"], strength)
        return self._trained(context, probe, self._network(context), seconds)

    def report(self, context: RunContext, output: TrainedProbe | None) -> Iterable[Item]:
        if output is None:
            yield Note(text="no linear probe: it needs labeled training samples of two classes, and validation samples")

    def _possible(self, context: RunContext) -> bool:
        """Whether there are labels to fit it on, and a validation split to choose the penalty on."""
        labeled = np.unique(context.data.subset("train").labels) != UNLABELED
        return bool(labeled.sum() >= 2) and context.data.has_split("val")

    def _network(self, context: RunContext) -> Network:
        return pretrained_networks([self.network], context.seed)[0]

    def _trained(self, context: RunContext, probe: LinearProbe, network: Network, seconds: float) -> TrainedProbe:
        what = f"frozen backbone, logistic regression on {context.data.labeled_count} labels"
        return TrainedProbe("linear probe", what, probe, network, seconds)
