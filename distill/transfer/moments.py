"""Batch-norm statistics of a domain, and the head that standardizes pooled features of a domain.

Shape suffixes: N images, D pooled width, K classes, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from augment.chain import eval_view
from distill.data.reader import Batch
from distill.deltas.attach import deltas
from distill.deltas.base import StructuralDelta, frozen
from distill.deltas.sites import classifier_names, inside, owners_blocks
from distill.deltas.statistics import REPLACED, Statistics
from distill.models.student import Student
from distill.transfer.start import Moments

DEAD = 1e-3
"""A feature whose standard deviation on the target is below this fraction of that on the source is not scaled."""


@torch.no_grad()
def batch_norm_inputs(
    student: Student,
    batches: Iterable[Batch],
    device: torch.device,
    sites: Collection[str],
    seen: Callable[[str, nn.Module, Moments], None] | None = None,
) -> dict[str, Moments]:
    """Mean and variance of what layers read, over the images of a domain, in one pass.

    Args:
        student: is moved to the device meanwhile.
        batches: of the domain's images.
        device: to compute on.
        sites: names of the layers, see :func:`batch_norms_of`.
        seen: called before each of them computes, with its name, itself, and the moments of this batch; None: nothing.

    Returns:
        Site → mean and biased variance [C] of all images together, fp32 on the CPU.
    """
    sums: dict[str, Tensor] = {}
    home = next(student.parameters()).device
    student.to(device).eval()

    def watch(name: str, layer: nn.Module, x: Tensor) -> None:
        x_NC = x.movedim(1, -1).reshape(-1, x.shape[1]).double()
        mean = x_NC.mean(0)
        var = (x_NC - mean).square_().mean(0)  # torch.var_mean takes three times as long on the CPU
        count = len(x_NC)
        own = torch.stack([torch.full_like(mean, count), count * mean, count * (var + mean.square())])
        sums[name] = sums[name] + own if name in sums else own
        if seen is not None:
            seen(name, layer, (mean.float().cpu(), var.float().cpu()))

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: watch(name, layer, inputs[0]))
        for name, layer in ((name, student.model.get_submodule(name)) for name in sites)
    ]
    try:
        for batch in batches:
            student(eval_view(batch.images.to(device), student.input).contiguous(memory_format=torch.channels_last))
    finally:
        for hook in hooks:
            hook.remove()
        student.to(home)
    measured = {}
    for name, total in sums.items():
        count, mean = total[0], total[1] / total[0]
        variance = (total[2] / count - mean.square()).clamp(min=0)
        measured[name] = mean.float().cpu(), variance.float().cpu()
    return measured


def batch_norms_of(model: nn.Module) -> list[str]:
    """Names of the layers of a backbone that normalize by running statistics, whose statistics can be replaced."""
    structural = [name for name, module in model.named_modules() if isinstance(module, StructuralDelta)]
    others = (*structural, *classifier_names(model), *owners_blocks(model))
    return [
        name
        for name, layer in model.named_modules()
        if getattr(layer, "running_mean", None) is not None
        and not inside(name, others)
        and "parametrizations" not in name.split(".")  # of such a layer with a ``statistics`` delta
    ]


@torch.no_grad()
def batch_norm_moments(
    student: Student,
    batches: Iterable[Batch],
    device: torch.device,
    source: Mapping[str, Moments] | None = None,
    adapt: bool = True,
) -> dict[str, Moments]:
    """Mean and variance of what each batch norm reads, over the images of a domain, in one pass.

    Batches in random order have all classes; the variance is that of all images, also between batches.

    Args:
        student: with ``statistics`` deltas, whose values change meanwhile and are restored.
        batches: of the domain's images.
        device: to compute on.
        source: moments of the source domain, for :func:`aligned`, with the statistics that the deltas have; None:
            statistics are replaced by the batch's.
        adapt: whether every batch is normalized by its own statistics, so that a layer sees inputs that the layers
            before it have adapted already; else the student computes as it is.

    Returns:
        Site → mean and biased variance [C], fp32 on the CPU.
    """
    sites = {site.name: site.delta for site in deltas(student.model) if isinstance(site.delta, Statistics)}
    before = {name: (own.mean.clone(), own.var.clone()) for name, own in sites.items()}

    def replace(name: str, layer: nn.Module, target: Moments) -> None:
        sites[name].fill(*(target if source is None else aligned(layer, source[name], target, before[name])))

    try:
        return batch_norm_inputs(student, batches, device, sites, replace if adapt else None)
    finally:
        for name, own in sites.items():
            own.fill(*before[name])


@torch.no_grad()
def aligned(layer: nn.Module, source: Moments, target: Moments, own: Moments | None = None) -> Moments:
    """Statistics with which a batch norm gives the target's images what it gives the source's.

    A network that was not trained with batch norms of its own data, such as a pretrained one with deltas, has
    statistics (μ, σ²) that are neither domain's, and its weights are adapted to them. So AdaBN's replacement by the
    target's would change every layer. Instead, ``x → (x − μ_t) σ_s/σ_t + μ_s`` is put in front of the batch norm, which
    is the same batch norm with ``σ'² = σ² σ_t²/σ_s²`` and ``μ' = μ_t − (μ_s − μ) σ_t/σ_s``, each σ² with the layer's ε.
    Where (μ, σ²) are the source's, these are the target's, as in AdaBN.

    Args:
        layer: with its own statistics, below a ``statistics`` delta.
        source: moments of the source, with these statistics.
        target: moments of the target.
        own: (μ, σ²), with which the moments of the source were measured; None: the layer's, below the delta.

    Returns:
        μ' and σ'² [C], on the CPU.
    """
    mean, var = (tensor.cpu() for tensor in own or (frozen(layer, name) for name in REPLACED))  # type: ignore[union-attr]
    eps: float = layer.eps  # type: ignore[assignment]
    ratio = ((target[1] + eps) / (source[1] + eps)).sqrt()
    return target[0] - (source[0] - mean) * ratio, ((var + eps) * ratio.square() - eps).clamp(min=0)


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and standard deviation of pooled features over the images of a domain, [D] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> FeatureMoments:
        """Of some features, N ≥ 1."""
        return cls(features_ND.mean(0), features_ND.std(0, correction=0))


def can_standardize(model: nn.Module) -> bool:
    """Whether the head is one plain linear layer on the pooled features, into which a scaling can be folded."""
    head = model.get_classifier()  # type: ignore[operator]
    return isinstance(head, nn.Linear) and not parametrize.is_parametrized(head)


@torch.no_grad()
def standardized(model: nn.Module, source: FeatureMoments, target: FeatureMoments) -> nn.Module:
    """A copy whose head reads target features as if they had the source's mean and standard deviation.

    ``f → (f − μ_t)/σ_t · σ_s + μ_s`` in front of the head ``W f + b`` is the head ``W' = W ∘ σ_s/σ_t``,
    ``b' = b + W μ_s − W' μ_t``, so what ships is a plain linear layer. A feature that is dead on the target (its σ_t is
    below :data:`DEAD` of σ_s, or zero) is shifted and not scaled: its scale would be unbounded, and an image on which
    it is not dead would get logits of any size.

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
    alive = (target.std > 0) & (target.std >= DEAD * source.std)
    scale = torch.where(alive, source.std / target.std.where(alive, torch.ones_like(target.std)), 1.0)
    scaled_KD = weight_KD * scale.to(weight_KD)
    shift_K = weight_KD @ source.mean.to(weight_KD) - scaled_KD @ target.mean.to(weight_KD)
    head.weight.copy_(scaled_KD)
    if head.bias is None:
        head.bias = nn.Parameter(shift_K)
    else:
        head.bias.add_(shift_K)
    return model
