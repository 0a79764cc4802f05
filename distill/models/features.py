"""The outputs of a network that objectives read, and their shapes.

Shape suffixes: B batch, K classes, D pooled width, C channels, H W map size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Features:
    """One network's outputs for one view of a batch. Only outputs that an objective reads are computed.

    ``logits`` [B, K] · ``pooled`` [B, D], the classifier's input · ``maps`` stage name → [B, C, H, W], tokens of a
    ViT folded back to their grid, stages named as timm names them in ``feature_info`` · ``token`` [B, K], the logits of
    a ViT's distillation token; its ``logits`` are then the mean of these and the class token's.
    """

    logits: Tensor | None = None
    pooled: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    token: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All outputs that were computed."""
        return [tensor for tensor in (self.logits, self.pooled, *self.maps.values(), self.token) if tensor is not None]


@dataclass(frozen=True)
class FeatureShapes:
    """Output shapes of a network without the batch axis, from which projectors are built before training."""

    classes: int
    """Width of the logits; 0 for a network without a classifier, whose "logits" are its pooled features."""
    pooled: int
    maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Stage name → (C, H, W), shallow to deep, at the network's configured input size."""
    classifier: nn.Linear | None = field(default=None, repr=False, compare=False)
    """The network's own layer from pooled features to logits; None where that is not one linear layer."""
