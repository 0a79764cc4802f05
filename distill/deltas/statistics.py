"""Batch-norm statistics for the target domain: another μ and σ² for every batch norm.

``y = γ (x − μ') / √(σ'² + ε) + β``, γ and β of the network. In AdaBN (μ', σ'²) are (μ_t, σ_t²) of the target's
images. Where moments (μ_s, σ_s²) of the source are known, ``σ'² = σ² σ_t²/σ_s²`` and
``μ' = μ_t − (μ_s − μ) σ_t/σ_s``: the same, where the network's own (μ, σ²) are the source's; see
:func:`distill.transfer.moments.aligned`. Merging replaces the running statistics, so it is exact to the bit; a delta
file holds them as moved statistics (``moved/…``), beside the other deltas.

Paper: Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, arXiv 1603.04779.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.base import Delta, DeltaSettings, LayerRefused

Normalization = Literal["source", "target"]
"""Whose batch-norm statistics a network computes with."""


class Statistics(Delta):
    """``running_mean`` and ``running_var`` of a batch norm, replaced by statistics for the target domain.

    The runs that have a target domain measure them before training: aligned with the source's where there are source
    images (:func:`distill.transfer.moments.aligned`), else those of the images. Until then they are the network's own.
    Training does not change them. With ``source: own``, training normalizes source images by the network's own
    statistics and target images by these; the finished network has these for all.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.statistics import Statistics
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm2d(2)).eval()
    >>> (site,) = attach(model, [Statistics.Settings()])
    >>> x = torch.ones(1, 2, 1, 1)
    >>> site.delta.mean.fill_(1.0).tolist(), model(x).flatten().tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """

    class Settings(DeltaSettings):
        type: Literal["statistics"] = "statistics"
        source: Literal["own", "target"] = Field(
            "own", description="statistics that normalize source images in training: the network's own, or the target's"
        )

    kinds = frozenset({"norm"})

    settings: Settings
    mean: Tensor
    var: Tensor

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__()
        if getattr(layer, "running_mean", None) is None:
            raise LayerRefused("keeps no running statistics; only batch norms do")
        self.settings = settings
        self.normalization: Normalization = "target"
        for name, tensor in (("mean", layer.running_mean), ("var", layer.running_var)):
            self.register_buffer(name, tensor.detach().clone())  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def fill(self, mean: Tensor, var: Tensor) -> None:
        """Set the statistics, [C] each."""
        self.mean.copy_(mean)
        self.var.copy_(var)


REPLACED = {"running_mean": "mean", "running_var": "var"}
"""Buffer of a batch norm → the name of its replacement."""
