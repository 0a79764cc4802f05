"""Predictions of students and teachers, and pooled features of any network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from augment.views import InputSpec
from distill.data.base import Split
from distill.data.reader import Batch
from distill.models.features import Features
from distill.models.network import Network, extract
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.run.context import RunContext
from distill.training.evaluate import Predictions


def predict_student(context: RunContext, student: Student, split: Split, labeled: bool = False) -> Predictions:
    """The student's predictions on a split.

    Args:
        context: of the run, for its data and device.
        student: on any device, to which it is returned.
        split: of the data.
        labeled: of train, only the images with a visible label.

    Returns:
        Logits [N, K], labels and ids of the images.
    """
    loader = loader_of(context, student.input, split, labeled)
    return context.predict(student, lambda view: logits_of(student(view)), student.input, loader)


def loader_of(context: RunContext, spec: InputSpec, split: Split, labeled: bool) -> Iterable[Batch]:
    """The batches of a split; with ``labeled``, those of train have only the images with a visible label."""
    return context.labeled_loader(spec) if labeled and split == "train" else context.loader(split, spec)


def predict_pooled(context: RunContext, network: Network, loader: Iterable[Batch]) -> Predictions:
    """Pooled features of a network for a split, in the place of logits.

    Args:
        context: of the run, for its device.
        network: on any device, to which it is returned.
        loader: batches of a split.

    Returns:
        Features [N, C], labels and ids of the split.
    """
    model = network.model

    def pooled(view: Tensor) -> Tensor:
        features = extract(model, view, frozenset({"pooled"})).pooled
        assert features is not None
        return features

    return context.predict(model, pooled, network.input, loader)


def predict_teacher(context: RunContext, teacher: Teacher, split: Split) -> Predictions:
    """Log of the weighted mean of the networks' probabilities; each network gets views of its own size.

    The mean for a class is over the networks that have the class.

    Args:
        context: of the run, for its data and device.
        teacher: on any device, to which it is returned.
        split: of the data.

    Returns:
        Log-probabilities [N, K], labels and ids of the split.
    """
    single: list[Predictions] = []
    for n, (network, spec) in enumerate(zip(teacher.networks, teacher.inputs, strict=True)):

        def probabilities(view: Tensor, n: int = n, network: nn.Module = network) -> Tensor:
            return teacher.probabilities(n, logits_of(teacher.features_of(network, view)))

        single.append(context.predict(teacher, probabilities, spec, context.loader(split, spec)))
    mean = teacher.mean([predictions.logits for predictions in single])
    return Predictions(mean.log(), single[0].labels, single[0].ids)


def logits_of(features: Features) -> Tensor:
    """The logits [B, K] of features that have them."""
    assert features.logits is not None
    return features.logits
