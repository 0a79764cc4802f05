"""Checks before training that the settings of an entry of ``student.deltas`` can be met on its layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from distill.deltas.attach import layer_at
from distill.deltas.base import Delta, DeltaSettings, WeightDelta
from distill.deltas.sites import find_target


def check_entry(model: nn.Module, entry: DeltaSettings, deltas: Mapping[str, Delta]) -> None:
    """Run ``WeightDelta.check`` of an entry's method; structural deltas have none.

    Args:
        model: has the deltas of the entry; those whose ranks are chosen from data have rank 1.
        entry: settings of the deltas.
        deltas: site → delta. Dense deltas that replace oversized ones are ignored.

    Raises:
        DeltaError: a budget is too small for one rank, or a bound cannot be kept. Training would fail for it, maybe
            only at its end.
    """
    method = entry.component
    if method is not None and issubclass(method, WeightDelta):
        own = [find_target(model, site) for site, delta in deltas.items() if isinstance(delta, method)]
        method.check(entry, {target.name: layer_at(model, target) for target in own})
