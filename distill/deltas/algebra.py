"""Sums and multiples of the changes that deltas make, layer by layer, from the deltas' tensors alone.

A layer's deltas are a chain, applied in order: ``W → d_n(… d_1(W))``. Its change is ``Δ(W) = W' − W``. Sums
and multiples of changes are exact for these methods (see the class attributes of
:class:`distill.deltas.base.WeightDelta`):

* ``additive`` deltas (low rank, dense, bias) add something that does not depend on W. If all deltas of a chain but the
  first are additive, ``Δ(W) = Δ_1(W) + Σ Δ_i``. Such a chain is called *a sum* below.
* a sum whose deltas are all ``proportional_to`` some of their tensors is multiplied by multiplying these tensors.
* ``Δ_a + Δ_b`` is ``a`` followed by ``b`` if b is additive, or ``b`` followed by ``a`` if a is; two sums that begin
  with the same kind of delta can be added if their first deltas can (scale and shift: ``s_a + s_b``).

For everything else these functions return None, and the caller computes a dense difference: see
:mod:`distill.export.delta.algebra`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distill.deltas.base import DeltaTensors, WeightDelta


@dataclass(frozen=True)
class Link:
    """One delta of a chain."""

    site: str
    """Name of the layer, or of a part of it: ``blocks.0.attn.qkv[q]``."""
    learned: DeltaTensors

    @property
    def method(self) -> type[WeightDelta]:
        method = self.learned.settings.component
        assert method is not None and issubclass(method, WeightDelta)
        return method


Chain = tuple[Link, ...]
"""The deltas of one layer in the order in which they are applied."""


def scaled(chain: Chain, factor: float) -> Chain | None:
    """A chain of the same methods whose change is ``factor`` times this one's; None if there is none."""
    if factor == 1:
        return chain
    proportional = all(link.method.proportional_to for link in chain)
    return tuple(_times(link, factor) for link in chain) if _is_sum(chain) and proportional else None


def added(first: Chain, second: Chain) -> Chain | None:
    """A chain whose change is the sum of both; None if there is none."""
    if _is_additive(second):
        return compact(first + second)
    if _is_additive(first):
        return compact(second + first)
    if not (_is_sum(first) and _is_sum(second)):
        return None
    together = _sum_of(first[0], second[0])
    return None if together is None else compact((together, *first[1:], *second[1:]))


def compact(chain: Chain) -> Chain:
    """The same change in fewer deltas: adjacent additive deltas of one method and one site become one.

    Deltas whose change is zero are removed.
    """
    made: list[Link] = []
    run = 0  # index in ``made`` of the first of the additive deltas at its end
    for link in chain:
        if not link.method.additive:
            run = len(made) + 1
            made.append(link)
            continue
        for index in range(run, len(made)):
            together = _sum_of(made[index], link)
            if together is not None:
                made[index] = together
                break
        else:
            made.append(link)
    return tuple(link for link in made if not _is_nothing(link))


def _is_nothing(link: Link) -> bool:
    scales = [t for name, t in link.learned.tensors.items() if name in link.method.proportional_to]
    return bool(scales) and not any(t.any() for t in scales)


def _is_additive(chain: Chain) -> bool:
    return all(link.method.additive for link in chain)


def _is_sum(chain: Chain) -> bool:
    return _is_additive(chain[1:])


def _sum_of(first: Link, second: Link) -> Link | None:
    if first.site != second.site or first.method is not second.method:
        return None
    learned = first.method.summed([first.learned, second.learned])
    return None if learned is None else Link(first.site, learned)


def _times(link: Link, factor: float) -> Link:
    tensors: Mapping[str, Tensor] = link.learned.tensors
    scales = link.method.proportional_to
    multiplied = {name: tensor * factor if name in scales else tensor for name, tensor in tensors.items()}
    return Link(link.site, DeltaTensors(link.learned.settings, multiplied))
