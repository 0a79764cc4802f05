"""Whose batch-norm statistics a network with a ``statistics`` delta computes with: its own, or the target domain's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distill.deltas.attach import deltas
from distill.deltas.statistics import Normalization, Statistics
from distill.models.features import Features

DOMAINS: tuple[Normalization, Normalization] = ("source", "target")
"""By the number of a domain in a batch."""


def statistics_of(model: nn.Module) -> list[Statistics]:
    """The ``statistics`` deltas of a network."""
    return [site.delta for site in deltas(model) if isinstance(site.delta, Statistics)]


@contextmanager
def normalized_by(statistics: Sequence[Statistics], normalization: Normalization) -> Iterator[None]:
    """Within it, these batch norms compute with the statistics of one domain; afterwards with the target's again."""
    for each in statistics:
        each.normalization = normalization
    try:
        yield
    finally:
        for each in statistics:
            each.normalization = "target"


def forward_by_domain(
    forward: Callable[[Tensor], Features], statistics: Sequence[Statistics], view: Tensor, domains: Tensor
) -> Features:
    """The outputs for a view, each sample normalized by the statistics of its own domain.

    Args:
        forward: of the network: view [B, C, H, W] → outputs.
        statistics: of the network.
        view: [B, C, H, W].
        domains: [B] int64 on the CPU.

    Returns:
        The outputs, in the order of the view.
    """
    parts, rows = [], []
    for number, name in enumerate(DOMAINS):
        own = (domains == number).nonzero()[:, 0]
        if len(own):
            with normalized_by(statistics, name):
                parts.append(forward(view[own.to(view.device, non_blocking=True)]))
            rows.append(own)
    order = torch.cat(rows).argsort().to(view.device, non_blocking=True)
    return _joined(parts, order)


def forward_some(forward: Callable[[Tensor], Features], view: Tensor, rows: Tensor) -> Features:
    """The outputs for some rows of a view; those of the others are NaN.

    Args:
        forward: of the network: view [N, C, H, W] → outputs.
        view: [B, C, H, W].
        rows: [N] int64 on the CPU.

    Returns:
        Outputs with B rows.
    """
    rows = rows.to(view.device, non_blocking=True)
    part = forward(view[rows])

    def spread(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.new_full((len(view), *x.shape[1:]), torch.nan).index_copy(0, rows, x)

    maps = {name: value for name, own in part.maps.items() if (value := spread(own)) is not None}
    return Features(spread(part.logits), spread(part.pooled), maps, spread(part.token))


def mean_of(outputs: Sequence[Features]) -> Features:
    """The mean of several outputs: of the probabilities (so the logits are its logarithm), of features and maps."""
    if len(outputs) == 1:
        return outputs[0]

    def mean(tensors: Sequence[Tensor | None]) -> Tensor | None:
        own = [tensor for tensor in tensors if tensor is not None]
        return torch.stack(own).mean(0) if own else None

    logits = mean([own.logits.float().softmax(1) for own in outputs if own.logits is not None])
    maps = {name: torch.stack([own.maps[name] for own in outputs]).mean(0) for name in outputs[0].maps}
    logits = None if logits is None else logits.clamp(min=torch.finfo(logits.dtype).tiny).log()
    return Features(logits, mean([own.pooled for own in outputs]), maps)


def _joined(parts: Sequence[Features], order: Tensor) -> Features:
    def join(tensors: Sequence[Tensor | None]) -> Tensor | None:
        own = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(own)[order] if own else None

    maps = {name: torch.cat([part.maps[name] for part in parts])[order] for name in parts[0].maps}
    fields = ("logits", "pooled", "token")
    logits, pooled, token = (join([getattr(part, name) for part in parts]) for name in fields)
    return Features(logits, pooled, maps, token)
