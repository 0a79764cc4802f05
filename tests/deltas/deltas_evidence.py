"""What a method may look at before training, made up: no training, known numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distill.deltas.base import Gradients


@dataclass
class Point:
    weights: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]

    def gradients(self, samples: int) -> Mapping[str, Gradients]:
        return {site: Gradients(self.means[site], self.squares[site], 1.0) for site in self.means}

    def feature_change(self, samples: int) -> Mapping[str, float]:
        raise NotImplementedError


@dataclass
class Told:
    """Evidence of given layers; gradients and free weights are random."""

    backbone: nn.Module
    layers: Mapping[str, nn.Module]
    asked: list[tuple[int, str]] = field(default_factory=list)

    def after(self, epochs: int, train: str = "weights", lr: float | None = None) -> Point:
        self.asked.append((epochs, train))
        torch.manual_seed(5)
        weights = {site: layer.weight.detach() for site, layer in self.layers.items()}
        noise = {site: torch.randn_like(weight) for site, weight in weights.items()}
        free = {site: weight + noise[site] for site, weight in weights.items()}
        return Point(free, {s: n.flip(0) for s, n in noise.items()}, {s: n.roll(1, 0) ** 2 for s, n in noise.items()})
