"""Reptile and FOMAML on deltas: θ is the state of the deltas alone, never that of the backbone or of a head.

An episode starts from θ and a prototype head of its own support, scaled so that the logit of the right class leads by
``MARGIN`` at a class's mean, on average, or by less where the means of the classes are nearly equal. Inner steps train
deltas and head together, by Adam without momentum (β₁ 0), on the evaluation views of the images. The head ends with the
episode. Everything random is keyed by the seed and the number of the episode.

Reptile: ``θ ← θ + ε (mean θ_k − θ)``. FOMAML: Adam with the mean over episodes of the gradient of the queries' loss at
θ_k, taken for that at θ.

Deviations from the papers: they train whole networks from random weights, with an output layer that belongs to θ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from augment.draws import Draws
from distill.continual.heads.ncm import nearest_mean
from distill.deltas.sites import classifier_names, inside
from distill.models.student import Student
from distill.transfer.meta_settings import MetaSettings

MARGIN = 2.0
"""Mean difference between the logit of the right class and that of another, at the class means, before inner steps."""

SMALLEST = 1e-5
"""Smallest lead that is scaled to ``MARGIN``, relative to the mean squared norm of the means: below, it is rounding."""


@dataclass(frozen=True)
class EpisodeViews:
    """Images of an episode, on the device of the student.

    Args:
        support: [N, C, H, W] views that inner steps train on.
        labels: [N] int64 in 0 … K − 1.
        queries: [Q, C, H, W] other views; may be empty.
        query_labels: [Q].
        number: of the episode, which keys the order of its images.
    """

    support: Tensor
    labels: Tensor
    queries: Tensor
    query_labels: Tensor
    number: int


@dataclass(frozen=True)
class EpisodeHead:
    """A learned episode: the deltas of the student are θ_k.

    Args:
        weight: [K, D] of its head.
        bias: [K].
        first: accuracy on the images of the first inner step, before it.
        last: the same of the last one.
    """

    weight: Tensor
    bias: Tensor
    first: float
    last: float

    def logits(self, student: Student, views: Tensor) -> Tensor:
        return _pooled(student, views) @ self.weight.T + self.bias


def delta_parameters(student: Student) -> dict[str, Tensor]:
    """Name → parameter of the deltas; those of the head are left out."""
    head = classifier_names(student.model)
    return {
        name: parameter
        for name, parameter in student.named_parameters()
        if parameter.requires_grad and not inside(name.removeprefix("model."), head)
    }


def state_of(student: Student) -> dict[str, Tensor]:
    """A copy of θ."""
    return {name: parameter.detach().clone() for name, parameter in delta_parameters(student).items()}


@torch.no_grad()
def load_state(student: Student, state: Mapping[str, Tensor]) -> None:
    """Set the deltas to θ."""
    for name, parameter in delta_parameters(student).items():
        parameter.copy_(state[name])


def learn(
    student: Student, task: EpisodeViews, settings: MetaSettings, seed: int, steps: int, batch: int
) -> EpisodeHead:
    """Train the deltas of a student, as they are, in an episode.

    Args:
        student: in eval mode, with pooled features; its deltas change.
        task: the episode.
        settings: of the inner steps.
        seed: of the run.
        steps: number of inner steps, k.
        batch: images of a step; all images come before one comes again.

    Returns:
        The head of the episode.
    """
    weight, bias = _prototype_head(student, task)
    parameters = [*delta_parameters(student).values(), weight, bias]
    optimizer = torch.optim.Adam(parameters, lr=settings.inner_lr, betas=(0.0, 0.999))
    accuracies = []
    for step in range(steps):
        rows = batch_rows(len(task.labels), batch, step, seed, task.number).to(task.labels.device)
        logits = _pooled(student, task.support[rows]) @ weight.T + bias
        accuracies.append((logits.argmax(1) == task.labels[rows]).double().mean().item())
        optimizer.zero_grad()
        cross_entropy(logits, task.labels[rows]).backward()
        optimizer.step()
        student.after_step(step + 1, steps)
    return EpisodeHead(weight.detach(), bias.detach(), accuracies[0], accuracies[-1])


def query_gradient(student: Student, task: EpisodeViews, learned: EpisodeHead) -> dict[str, Tensor]:
    """Gradient of the queries' loss with respect to the deltas, at θ_k: the first-order gradient at θ."""
    parameters = delta_parameters(student)
    loss = cross_entropy(learned.logits(student, task.queries), task.query_labels)
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(parameters.items(), grads)
    }


def batch_rows(images: int, batch: int, step: int, seed: int, number: int) -> Tensor:
    """Rows of the images of an inner step: keyed permutations of all images, one after the other.

    Args:
        images: N, of the episode.
        batch: images of a step, at most N of them.
        step: counted from 0.
        seed: of the run.
        number: of the episode.

    Returns:
        [min(batch, N)] int64.
    """
    batch = min(batch, images)
    draws, first = Draws(seed, 0, "meta", torch.tensor([number])), step * batch
    passes = range(first // images, (first + batch - 1) // images + 1)
    rows = torch.cat([draws.op("images").permutation(each, images)[0] for each in passes])
    return rows[first - passes[0] * images :][:batch]


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of states or gradients of the same names."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def _prototype_head(student: Student, task: EpisodeViews) -> tuple[Tensor, Tensor]:
    """The scaled prototype head of an episode's support, as parameters."""
    with torch.no_grad():
        features_ND = _pooled(student, task.support)
        onehot_NK = torch.nn.functional.one_hot(task.labels).to(features_ND)
        means_DK = (onehot_NK.T @ features_ND / onehot_NK.sum(0)[:, None]).T
        weight_KD, bias_K = nearest_mean(means_DK)
        # What all classes have in common changes no probability, and would be large in nearly equal classes.
        weight_KD, bias_K = weight_KD - weight_KD.mean(0), bias_K - bias_K.mean()
        # At the mean of a class, the logit of another one is ‖c_i − c_j‖²/2 lower.
        lead = torch.pdist(means_DK.T).square().mean() / 2
        rounding = SMALLEST * means_DK.square().sum(0).mean()
        scale = torch.where(rounding > 0, MARGIN / torch.maximum(lead, rounding), 1.0)
    return (scale * weight_KD).requires_grad_(), (scale * bias_K).requires_grad_()


def _pooled(student: Student, views: Tensor) -> Tensor:
    features = student(views.contiguous(memory_format=torch.channels_last)).pooled
    assert features is not None
    return features
