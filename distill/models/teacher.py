"""The teacher: one or several frozen networks that compute the teacher's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from augment.views import InputSpec
from distill.models.features import Features, FeatureShapes
from distill.models.frozen import freeze
from distill.models.label_map import LabelMaps
from distill.models.network import Network, as_network, extract, measure_shapes
from distill.models.teacher_settings import WeightingSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Teacher(nn.Module):
    """Frozen networks in eval mode, in a dtype of their own, without gradient.

    ``forward(views)`` takes ``Views.teacher`` (``views[n][v]``: view v as network n expects it) and returns
    ``features[n][v]`` in fp32.

    Args:
        networks: timm models as they are, or objects of ``Network``; they are frozen in place.
        weights: of the networks, normalized to sum 1; None: equal.
        needs: which fields of ``Features`` to compute.
        dtype: of weights and computation; outputs are fp32.
        compile: whether to run the networks through ``torch.compile``.
        maps: from the networks' classes to the student's; None: the classes are the same.
        weighting: how the networks are weighted in training; None: by ``weights`` alone.
    """

    def __init__(
        self,
        networks: Sequence[Network | nn.Module],
        weights: list[float] | None = None,
        needs: frozenset[str] = frozenset({"logits"}),
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        maps: LabelMaps | None = None,
        weighting: WeightingSettings | None = None,
    ):
        super().__init__()
        self.maps = maps or LabelMaps()
        self.weighting = weighting or WeightingSettings()
        members = [as_network(network) for network in networks]
        self.networks = nn.ModuleList(network.model for network in members)
        self.inputs: list[InputSpec] = [network.input for network in members]
        self.origins = [network.origin for network in members]
        weights = weights or [1.0] * len(networks)
        self.weights = [weight / sum(weights) for weight in weights]
        self.needs = needs
        self._frozen = freeze(self)
        self.shapes: list[FeatureShapes] = [measure_shapes(n.model, n.input, needs) for n in members]
        self.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype, self.compiled = dtype, compile
        self._extract = torch.compile(extract) if compile else extract

    def extra_repr(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [f"weighting={self.weighting.type}, dtype={dtype}, needs={'|'.join(sorted(self.needs))}"]
        for n, (origin, spec, weight) in enumerate(zip(self.origins, self.inputs, self.weights, strict=True)):
            lines.append(f"network {n}: {origin}, input={' x '.join(map(str, spec.size))}, weight={weight:.4g}")
        return "\n".join(lines)

    @torch.no_grad()
    def forward(self, views: tuple[tuple[Tensor, ...], ...]) -> list[list[Features]]:
        """``features[n][v]`` of network n for ``views[n][v]`` [B, 3, H, W]."""
        self._frozen.enforce()
        # Autocast would override the teacher's dtype: it casts weights that are bf16 already, and fp32 ones to bf16.
        with torch.autocast(views[0][0].device.type, enabled=False):
            return [
                [self.features_of(network, view) for view in network_views]
                for network, network_views in zip(self.networks, views, strict=True)
            ]

    def has_classes(self, classes: int) -> bool:
        """Whether every network has logits of that many classes, or a map to them; never for no classes."""
        return classes > 0 and all(
            shapes.classes == classes or self.maps[n] is not None for n, shapes in enumerate(self.shapes)
        )

    def probabilities(self, n: int, logits: Tensor) -> Tensor:
        """Network n's probabilities [B, K] of the student's classes, NaN at those that it lacks."""
        return logits.softmax(1) if (map_ := self.maps[n]) is None else map_.probabilities(logits)

    def mean(self, probabilities: Sequence[Tensor]) -> Tensor:
        """[B, K], the weighted mean over networks, for each class over those that have it, normalized to sum 1."""
        p_NBK = torch.stack([*probabilities])
        weights_NBK = torch.tensor(self.weights, dtype=p_NBK.dtype, device=p_NBK.device)[:, None, None] * ~p_NBK.isnan()
        known_BK = weights_NBK.sum(0)
        p_BK = (weights_NBK * p_NBK.nan_to_num(0)).sum(0) / known_BK.where(known_BK > 0, 1)
        return p_BK / p_BK.sum(1, keepdim=True)

    def features_of(self, network: nn.Module, view: Tensor) -> Features:
        """The outputs of one of the networks for one view [B, 3, H, W], in fp32."""
        features = self._extract(network, view.to(self.dtype), self.needs)
        return Features(
            logits=None if features.logits is None else features.logits.float(),
            pooled=None if features.pooled is None else features.pooled.float(),
            maps={name: map_.float() for name, map_ in features.maps.items()},
        )
