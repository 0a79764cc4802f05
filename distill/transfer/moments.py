"""Batch-norm statistics of a domain, and the head that standardizes pooled features of a domain.

Shape suffixes: N images, D pooled width, K classes, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from augment.chain import eval_view
from distill.data.reader import Batch
from distill.deltas.attach import deltas
from distill.deltas.statistics import Statistics
from distill.models.student import Student
from distill.transfer.start import Moments

SMALLEST = 1e-6
"""Smallest standard deviation of a feature; a dead one is not scaled."""


@torch.no_grad()
def batch_norm_moments(student: Student, batches: Iterable[Batch], device: torch.device) -> dict[str, Moments]:
    """Mean and variance of what each batch norm reads, over the images of a domain, in one pass (AdaBN).

    Every batch is normalized by its own statistics, as in a training step, so that a layer sees inputs that the layers
    before it have adapted already. Batches in random order have all classes; the variance is that of all images, also
    between batches.

    Args:
        student: with ``statistics`` deltas, whose values change meanwhile and are restored.
        batches: of the domain's images.
        device: to compute on.

    Returns:
        Site → mean and biased variance [C], fp32 on the CPU.
    """
    sites = {site.name: site.delta for site in deltas(student.model) if isinstance(site.delta, Statistics)}
    before = {name: (own.mean.clone(), own.var.clone()) for name, own in sites.items()}
    sums: dict[str, Tensor] = {}
    home = next(student.parameters()).device
    student.to(device).eval()
    try:
        with _watching(student.model, sites, sums):
            for batch in batches:
                student(eval_view(batch.images.to(device), student.input).contiguous(memory_format=torch.channels_last))
    finally:
        student.to(home)
        for name, own in sites.items():
            own.fill(*before[name])
    measured = {}
    for name, total in sums.items():
        count, mean = total[0], total[1] / total[0]
        variance = (total[2] / count - mean.square()).clamp(min=0)
        measured[name] = mean.float().cpu(), variance.float().cpu()
    return measured


@contextmanager
def _watching(model: nn.Module, sites: dict[str, Statistics], sums: dict[str, Tensor]) -> Iterator[None]:
    """Within it, each batch norm computes with the statistics of its batch, which are added up in ``sums``."""

    def watch(name: str, delta: Statistics, x: Tensor) -> None:
        others = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = torch.var_mean(x.double(), others, correction=0)
        delta.fill(mean.to(delta.mean.dtype), var.to(delta.var.dtype))
        count = x.numel() / x.shape[1]
        own = torch.stack([torch.full_like(mean, count), count * mean, count * (var + mean.square())])
        sums[name] = sums[name] + own if name in sums else own

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name, delta=delta: watch(name, delta, inputs[0])
        )
        for name, delta in sites.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and standard deviation of pooled features over the images of a domain, [D] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> FeatureMoments:
        """Of some features, N ≥ 1."""
        return cls(features_ND.mean(0), features_ND.std(0, correction=0).clamp(min=SMALLEST))


def can_standardize(model: nn.Module) -> bool:
    """Whether the head is one plain linear layer on the pooled features, into which a scaling can be folded."""
    head = model.get_classifier()  # type: ignore[operator]
    return isinstance(head, nn.Linear) and not parametrize.is_parametrized(head)


@torch.no_grad()
def standardized(model: nn.Module, source: FeatureMoments, target: FeatureMoments) -> nn.Module:
    """A copy whose head reads target features as if they had the source's mean and standard deviation.

    ``f → (f − μ_t)/σ_t · σ_s + μ_s`` in front of the head ``W f + b`` is the head ``W' = W ∘ σ_s/σ_t``,
    ``b' = b + W μ_s − W' μ_t``, so what ships is a plain linear layer.

    Args:
        model: a timm model for which :func:`can_standardize` is true.
        source: of the domain that the head was trained on.
        target: of the domain that it will see.

    Returns:
        The copy.
    """
    model = copy.deepcopy(model)
    head: nn.Linear = model.get_classifier()  # type: ignore[operator, assignment]
    weight_KD = head.weight.detach().clone()
    scaled_KD = weight_KD * (source.std / target.std).to(weight_KD)
    shift_K = weight_KD @ source.mean.to(weight_KD) - scaled_KD @ target.mean.to(weight_KD)
    head.weight.copy_(scaled_KD)
    if head.bias is None:
        head.bias = nn.Parameter(shift_K)
    else:
        head.bias.add_(shift_K)
    return model
