"""The teacher: one or several frozen networks that look at the teacher's views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from augment.views import InputSpec
from distill.models.features import Features, FeatureShapes
from distill.models.frozen import freeze
from distill.models.network import Network, extract, measure_shapes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Teacher(nn.Module):
    """Frozen networks in eval mode, in a dtype of their own, without gradient.

    ``forward(views)`` takes ``Views.teacher`` (``views[n][v]``: view v as network n expects it) and returns
    ``features[n][v]`` in fp32.

    Args:
        networks: the networks and their weights; the weights are normalised to sum 1.
        needs: which fields of ``Features`` to compute.
    """

    def __init__(
        self,
        networks: list[Network],
        weights: list[float] | None = None,
        needs: frozenset[str] = frozenset({"logits"}),
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ):
        super().__init__()
        self.networks = nn.ModuleList(network.model for network in networks)
        self.inputs: list[InputSpec] = [network.input for network in networks]
        self.origins = [network.origin for network in networks]
        weights = weights or [1.0] * len(networks)
        self.weights = [weight / sum(weights) for weight in weights]
        self.needs = needs
        self._frozen = freeze(self)
        self.shapes: list[FeatureShapes] = [measure_shapes(n.model, n.input, needs) for n in networks]
        self.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype
        self._extract = torch.compile(extract) if compile else extract

    @torch.no_grad()
    def forward(self, views: tuple[tuple[Tensor, ...], ...]) -> list[list[Features]]:
        self._frozen.enforce()
        # Autocast would undo the teacher's own dtype: it would cast weights that are bf16 already, and fp32 ones down.
        with torch.autocast(views[0][0].device.type, enabled=False):
            return [
                [self.look(network, view) for view in network_views]
                for network, network_views in zip(self.networks, views, strict=True)
            ]

    def look(self, network: nn.Module, view: Tensor) -> Features:
        """What one of the networks sees in one view."""
        features = self._extract(network, view.to(self.dtype), self.needs)
        return Features(
            logits=None if features.logits is None else features.logits.float(),
            pooled=None if features.pooled is None else features.pooled.float(),
            maps={name: map_.float() for name, map_ in features.maps.items()},
        )
