"""The gains of ranks, from measurements after a warm-up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from deltas_evidence import Point, Told
from torch import Tensor, nn

from distill.deltas.base import Gradients
from distill.deltas.halrp import HALRP
from distill.deltas.low_rank import LowRank
from distill.deltas.rank_settings import Allocation
from distill.deltas.ranked import gains_of_ranks

LAYERS = {"conv": nn.Conv2d(4, 6, 3, groups=2).double(), "linear": nn.Linear(5, 4).double()}
INPUTS = {"conv": 0.25, "linear": 3.0}
FEATURES = {"conv": 0.5, "linear": 0.125}


@dataclass
class Seen(Point):
    def gradients(self, samples: int) -> Mapping[str, Gradients]:
        return {site: Gradients(self.means[site], self.squares[site], INPUTS[site]) for site in self.means}

    def feature_change(self, samples: int) -> Mapping[str, float]:
        return FEATURES


def seen() -> Seen:
    point = Told(nn.Sequential(), LAYERS).after(1)
    return Seen(point.weights, point.means, point.squares)


def squares(change: Tensor, groups: int) -> list[float]:
    """Squared singular values of every block, added up over the blocks, the largest first."""
    blocks = change.reshape(groups, len(change) // groups, -1)
    return sum(torch.linalg.eigvalsh(block @ block.T).flip(0) for block in blocks).tolist()  # type: ignore[union-attr]


IMPORTANCE = {
    "fisher": lambda point, site: point.squares[site].sum().item() / point.squares[site].numel(),
    "gradient": lambda point, site: math.sqrt(sum(g * g for g in point.means[site].flatten().tolist())),
    "activation": lambda point, site: INPUTS[site],
    "feature_change": lambda point, site: FEATURES[site],
    "none": lambda point, site: 1.0,
}


PAIRS = [(importance, spectrum) for importance in IMPORTANCE for spectrum in ("warm_up", "gradient")]
PAIRS.remove(("feature_change", "gradient"))  # refused by the settings


@pytest.mark.parametrize(("importance", "spectrum"), PAIRS)
def test_importance_times_squared_singular_values(importance: str, spectrum: str) -> None:
    point = seen()
    allocation = Allocation(budget=1, importance=importance, spectrum=spectrum)
    actual = gains_of_ranks(LowRank, allocation, LAYERS, point)
    assert actual.keys() == LAYERS.keys()
    for site, groups in {"conv": 2, "linear": 1}.items():
        change = point.weights[site] - LAYERS[site].weight.detach()
        if spectrum == "gradient":
            change = -point.means[site] / (point.squares[site].sqrt() + 1e-12)
        weight = IMPORTANCE[importance](point, site)
        expected = [weight * square for square in squares(change, groups)]
        rank_count = len(actual[site])
        assert actual[site].tolist() == pytest.approx(expected[:rank_count], rel=1e-9) and rank_count >= 3


def test_halrp_counts_a_rank_once_for_every_place_of_the_window() -> None:
    """Its matrix is the mean over the window; the rank is repeated at all nine places."""
    point, allocation = seen(), Allocation(budget=1, importance="none")
    actual = gains_of_ranks(HALRP, allocation, LAYERS, point)
    for site, places in {"conv": 9, "linear": 1}.items():
        blocks = HALRP.change(LAYERS[site], point.weights[site]).detach()
        expected = [places * square for square in squares(blocks.flatten(0, 1), len(blocks))]
        assert actual[site].tolist() == pytest.approx(expected[: len(actual[site])], rel=1e-9)
