"""timm's methods for the features of a network of ours that is a stem and stages."""

from __future__ import annotations

from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class StagedNet(nn.Module):
    """Base of networks with the attributes ``stem``, ``stages`` and ``feature_info``, and timm's methods for features.

    A subclass defines ``stem(x)``, the modules or names ``stages``, :meth:`stage`, :meth:`last`, :meth:`keep_stages`,
    ``get_classifier``, ``reset_classifier`` and ``forward_head``.
    """

    stem: Any
    stages: Any

    def stage(self, number: int, x: Tensor) -> Tensor:
        """The map after a stage, from the map before it."""
        raise NotImplementedError

    def last(self, x: Tensor) -> Tensor:
        """The final features, from the map after the last stage."""
        return x

    def keep_stages(self, count: int) -> None:
        """Remove the stages after the first ``count``."""
        raise NotImplementedError

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        assert not enable, "gradient checkpointing is not supported"

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's contract: the maps after the stages, and the final features.

        Args:
            x: images [B, 3, H, W].
            indices: which stages, as timm reads them; None: all.
            norm: without effect, as there is no norm after the stages.
            stop_early: run no stage after the last one of ``indices``.
            output_fmt: "NCHW" only.
            intermediates_only: leave the final features out.

        Returns:
            ``(final features, maps)``, or the maps alone.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        take, deepest = feature_take_indices(len(self.stages), indices)
        x, maps = self.stem(x), []
        for number in range(deepest + 1 if stop_early else len(self.stages)):
            x = self.stage(number, x)
            if number in take:
                maps.append(x)
        return maps if intermediates_only else (self.last(x), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's contract: remove the stages after the last one of ``indices``.

        Args:
            indices: which stages, as timm reads them.
            prune_norm: without effect, as there is no norm after the stages.
            prune_head: remove the classifier too.

        Returns:
            The numbers of the stages of ``indices``.
        """
        take, deepest = feature_take_indices(len(self.stages), indices)
        self.keep_stages(deepest + 1)
        if prune_head:
            self.reset_classifier(0, "")  # type: ignore[operator]
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(len(self.stages)):
            x = self.stage(number, x)
        return self.last(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))  # type: ignore[operator]
