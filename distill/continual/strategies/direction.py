"""A frozen direction with a learned scale in each layer: what an earlier task's low-rank delta becomes in a stack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.algebra import Chain
from distill.deltas.base import DeltaInit, DeltaSettings, WeightDelta
from distill.deltas.low_rank import LowRank
from distill.deltas.projected import plus_product


class Direction(WeightDelta):
    """``W + s · B A`` with frozen A and B and a learned scalar s; ``‖A‖ = ‖B‖ = 1`` in a stack.

    After training it is a low-rank delta with ``s · B``.

    Paper: Wu et al., SD-LoRA, arXiv 2501.13198.

    Example:
        >>> import torch
        >>> from distill.continual.strategies.direction import Direction
        >>> from distill.deltas.attach import attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> (site,) = attach(model, [Direction.Settings(rank=2)])
        >>> [name for name, _ in site.delta.named_parameters()], site.delta
        (['scale'], Direction(rank=2))
    """

    class Settings(DeltaSettings):
        type: Literal["distill.continual.strategies.direction:Direction"] = (
            "distill.continual.strategies.direction:Direction"
        )
        rank: int = Field(8, ge=1, description="of A and B, in each group")

    settings: Settings
    additive = True
    proportional_to = frozenset({"scale"})
    no_weight_decay = frozenset({"scale"})
    A: Tensor
    B: Tensor

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        groups: int = getattr(layer, "groups", 1)
        self.scale = nn.Parameter(weight.new_zeros(()))
        self.register_buffer("A", weight.new_zeros(groups, settings.rank, weight[0].numel()))
        self.register_buffer("B", weight.new_zeros(groups, len(weight) // groups, settings.rank))

    def extra_repr(self) -> str:
        return f"rank={self.settings.rank}"

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> DeltaInit | None:
        assert isinstance(settings, Direction.Settings)
        made = [LowRank.Settings(rank=settings.rank, sites=tuple(deltas))]
        tensors = {
            site: {"A": delta.A.detach(), "B": delta.B.detach() * delta.scale.detach()}
            for site, delta in deltas.items()
        }
        return DeltaInit(made, tensors)

    def forward(self, weight: Tensor) -> Tensor:
        return plus_product(weight, self.A, self.B * self.scale)


def directions(layers: Mapping[str, Chain]) -> tuple[list[Direction.Settings], dict[str, Tensor]]:
    """The deltas of a file as directions, one for each task that changed the layer.

    Each low-rank change ``B A`` becomes ``s · (B/‖B‖) (A/‖A‖)`` with ``s = ‖A‖ ‖B‖``: the same change.

    Args:
        layers: layer → its low-rank deltas, in the order of the tasks.

    Returns:
        Entries of a student's deltas, and the values of their tensors by the names of ``Student.own_state``.
    """
    sites: dict[tuple[int, int], list[str]] = defaultdict(list)
    weights: dict[str, Tensor] = {}
    for layer, chain in layers.items():
        for position, link in enumerate(chain):
            settings = link.learned.settings
            assert isinstance(settings, LowRank.Settings)
            alpha = 1.0 if settings.alpha is None else settings.alpha / settings.rank
            A, B = link.learned.tensors["A"], link.learned.tensors["B"] * alpha
            sites[position, settings.rank].append(link.site)
            prefix = f"model.{layer}.parametrizations.weight.{position}.delta"
            tiny = torch.finfo(A.dtype).tiny
            weights |= {
                f"{prefix}.A": A / A.norm().clamp(min=tiny),
                f"{prefix}.B": B / B.norm().clamp(min=tiny),
                f"{prefix}.scale": A.norm() * B.norm(),
            }
    made = [Direction.Settings(rank=rank, sites=tuple(sites[position, rank])) for position, rank in sorted(sites)]
    return made, weights


def mean_scales(layers: Mapping[str, Chain]) -> Iterator[float]:
    """``‖A‖ ‖B‖`` of the first, second, … delta of the layers, mean over the layers that have one.

    Args:
        layers: layer → its low-rank deltas, in the order of the tasks.
    """
    chains: Sequence[Chain] = [*layers.values()]
    for position in range(max(map(len, chains), default=0)):
        own = [chain[position].learned.tensors for chain in chains if len(chain) > position]
        yield float(torch.stack([tensors["A"].norm() * tensors["B"].norm() for tensors in own]).mean())
