"""What every stage of a run works with: the experiment, its data, and predictions of whatever network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from augment.base.errors import UserError
from augment.views import InputSpec
from distill.config import Experiment
from distill.data.base import Split
from distill.data.loader import Loader
from distill.data.module import ExperimentData
from distill.data.reader import Batch
from distill.models.features import Features
from distill.models.network import Network, extract
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.run.folder import local_rank
from distill.training.evaluate import Predictions, predict
from distill.training.fit import FitSummary, device_for
from distill.training.signals import StopSignal


class StageError(UserError, ValueError):
    """A stage cannot run on this data or with these networks; the text says what does not fit."""


@dataclass
class RunContext:
    """What every stage needs: the experiment, its data, where to show what happens, and who asks it to stop."""

    experiment: Experiment
    data: ExperimentData
    console: Console | None
    stop: StopSignal
    unreadable: dict[str, str] = field(default_factory=dict)
    """Id → reason of the images that training had to skip."""
    teacher_fits: list[FitSummary] = field(default_factory=list)
    """Of the teacher's networks, as far as they were trained by gradient."""

    @property
    def device(self) -> torch.device:
        return device_for(self.experiment.training)

    @property
    def connected(self) -> bool:
        """Whether there are ranks that share the work of ``predict``: from the start of the first fit on."""
        return dist.is_available() and dist.is_initialized()

    def loader(self, split: Split) -> Loader:
        """The split in order: this rank's share of it once the ranks are connected, all of it before."""
        return self.data.eval_loader(split, self.connected)

    def labeled_loader(self) -> Loader:
        """The training samples whose labels are shown, shared out in the same way."""
        return self.data.labeled_loader(self.connected)

    def predict(
        self, module: nn.Module, logits_of: Callable[[Tensor], Tensor], spec: InputSpec, loader: Iterable[Batch]
    ) -> Predictions:
        """Predictions of a module in eval mode, on the device; afterwards it is where and as it was."""
        before, modes = next(module.parameters()).device, [(part, part.training) for part in module.modules()]
        module.to(self.device).eval()
        try:
            return predict(logits_of, loader, spec, self.device)
        finally:
            module.to(before)
            for part, training in modes:
                part.training = training


def predict_student(context: RunContext, student: Student, split: Split) -> Predictions:
    return context.predict(student, lambda view: logits_of(student(view)), student.input, context.loader(split))


def predict_pooled(context: RunContext, network: Network, loader: Loader) -> Predictions:
    """Pooled features in the place of logits."""
    model = network.model

    def pooled(view: Tensor) -> Tensor:
        found = extract(model, view, frozenset({"pooled"})).pooled
        assert found is not None
        return found

    return context.predict(model, pooled, network.input, loader)


def predict_teacher(context: RunContext, teacher: Teacher, split: Split) -> Predictions:
    """Log of the weighted mean of the networks' probabilities; each network sees the split at its own size.

    A class counts for the networks that know it.
    """
    single: list[Predictions] = []
    for n, (network, spec) in enumerate(zip(teacher.networks, teacher.inputs, strict=True)):

        def one(view: Tensor, n: int = n, network: nn.Module = network) -> Tensor:
            return teacher.probabilities(n, logits_of(teacher.look(network, view)))

        single.append(context.predict(teacher, one, spec, context.loader(split)))
    mean = teacher.mean([predictions.logits for predictions in single])
    return Predictions(mean.log(), single[0].labels, single[0].ids)


def logits_of(features: Features) -> Tensor:
    assert features.logits is not None
    return features.logits


def make_data(experiment: Experiment) -> ExperimentData:
    device, rank = device_for(experiment.training), local_rank()
    if device.type == "cuda":
        device = torch.device("cuda", rank)  # before the ranks are connected, the current one is the first for all
    return ExperimentData(experiment.data, experiment.seed, experiment.training.devices, rank, device)
