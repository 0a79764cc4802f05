"""The interface of methods of anomaly detection on a frozen network's outputs.

A minimal one of your own, named in a config as ``anomaly: {methods: [{type: "my_package.anomaly:Norm"}]}``::

    class Norm(AnomalyMethod):
        class Settings(AnomalyMethod.Settings):
            type: str

        def fit(self, outputs, seed):
            return {"mean": torch.cat([each.pooled for each in outputs]).norm(dim=1).mean()}

        def score(self, output, state, size):
            return (output.pooled.norm(dim=1) - state["mean"]).abs(), None
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor

import augment.base
from augment.base import Component, UserError
from distill.models.features import Features


class AnomalyError(UserError, ValueError):
    """Anomalies cannot be detected; the text names the key, file or network."""


class AnomalyMethod(Component):
    """Fits normal images, and scores others by how far they are from these.

    Class attributes:
        needs: fields of ``Features`` that it reads, of ``{"pooled", "maps"}``.
    """

    class Settings(augment.base.Settings):
        type: str

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    def fit(self, outputs: Iterable[Features], seed: int) -> dict[str, Tensor]:
        """What is known of normal images.

        Args:
            outputs: of the network for batches of normal images, on the CPU, read once.
            seed: of random choices.

        Returns:
            Name → tensor; these are all that is stored.

        Raises:
            AnomalyError: they do not suffice.
        """
        raise NotImplementedError

    def score(
        self, output: Features, state: Mapping[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """How anomalous images are.

        Args:
            output: of the network for a batch, on the CPU.
            state: what :meth:`fit` returned.
            size: (height, width) of the network's input.

        Returns:
            [B], larger is more anomalous, and a map [B, H, W] of the input's size; None for a method without one.
        """
        raise NotImplementedError
