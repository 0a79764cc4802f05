"""What can be known before anything is trained: that the deltas of an entry can do what its settings ask of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from distill.deltas.attach import layer_at
from distill.deltas.base import Delta, DeltaSettings, WeightDelta
from distill.deltas.sites import find_target


def check_entry(model: nn.Module, entry: DeltaSettings, deltas: Mapping[str, Delta]) -> None:
    """See ``WeightDelta.check``.

    Args:
        model: carries the deltas of the entry; those whose ranks the data will choose at rank 1.
        deltas: site → delta; what stands in for the entry's own on layers that are too small is left out.

    Raises:
        DeltaError: what would end a training, maybe only at its end: a budget that buys nothing, a bound passed.
    """
    method = entry.component
    if method is not None and issubclass(method, WeightDelta):
        own = [find_target(model, site) for site, delta in deltas.items() if isinstance(delta, method)]
        method.check(entry, {place.name: layer_at(model, place) for place in own})
