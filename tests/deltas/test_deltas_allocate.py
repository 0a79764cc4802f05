"""Ranks from gains: the best ones where the best are known, the share rule, and budgets that buy nothing."""

from itertools import product

import pytest
import torch
from deltas_evidence import Told
from torch import Tensor, nn

from distill.deltas.allocate import Candidate, by_share, same_everywhere, within_budget
from distill.deltas.base import DeltaError
from distill.deltas.halrp import HALRP
from distill.deltas.low_rank import LowRank
from distill.deltas.rank_settings import Allocation, parse_bytes
from distill.deltas.ranked import RankedDelta, choose_ranks


def gains(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def quadratic(seed: int) -> tuple[list[Tensor], list[float]]:
    """A loss ``Σ_l h_l / 2 · ‖W_l − W*_l‖²``: the targets' changes E_l and the curvatures h_l."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 4), (5, 5), (3, 8)]
    return [torch.randn(shape, generator=generator).double() for shape in shapes], [0.2, 1.0, 7.0]


def loss_after(E: list[Tensor], h: list[float], ranks: tuple[int, ...]) -> float:
    """What is left of the quadratic when every layer changes by the best matrix of its rank: a plain reference."""
    left = 0.0
    for matrix, curvature, rank in zip(E, h, ranks):
        U, s, Vt = torch.linalg.svd(matrix, full_matrices=False)
        left += curvature / 2 * float((matrix - U[:, :rank] * s[:rank] @ Vt[:rank]).square().sum())
    return left


def candidates(E: list[Tensor], h: list[float], prices: tuple[int, ...]) -> dict[str, Candidate]:
    return {
        str(place): Candidate(curvature * torch.linalg.svdvals(matrix).square(), price)
        for place, (matrix, curvature, price) in enumerate(zip(E, h, prices))
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [1, 4, 7, 12])
def test_equal_prices_give_the_best_ranks_of_a_quadratic(seed: int, budget: int) -> None:
    E, h = quadratic(seed)
    actual = tuple(within_budget(candidates(E, h, (1, 1, 1)), budget).values())
    limits = [range(min(matrix.shape) + 1) for matrix in E]
    best = min((ranks for ranks in product(*limits) if sum(ranks) <= budget), key=lambda r: loss_after(E, h, r))
    assert actual == best and sum(actual) == min(budget, 12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [9, 20, 33])
def test_unequal_prices_lose_less_than_one_rank(seed: int, budget: int) -> None:
    E, h = quadratic(seed)
    prices = (10, 9, 11) if budget > 9 else (3, 4, 5)
    known = candidates(E, h, prices)
    actual = tuple(within_budget(known, budget).values())
    spent = sum(rank * price for rank, price in zip(actual, prices))
    limits = [range(min(matrix.shape) + 1) for matrix in E]
    affordable = [r for r in product(*limits) if sum(rank * p for rank, p in zip(r, prices)) <= budget]
    best = min(loss_after(E, h, ranks) for ranks in affordable)
    largest = max(float(candidate.gains[0]) for candidate in known.values()) / 2
    assert spent <= budget and loss_after(E, h, actual) - best <= largest
    assert budget - spent < max(prices)


def test_by_hand() -> None:
    known = {"a": Candidate(gains(8, 4, 1), 2), "b": Candidate(gains(9, 3), 3, fixed=1), "c": Candidate(gains(0, 0), 1)}
    # Gain per byte: a 4, 2, 0.5; b 9 / 4, then 1; c gains nothing and is not bought.
    assert within_budget(known, 8) == {"a": 2, "b": 1, "c": 0}
    assert within_budget(known, 7) == {"a": 1, "b": 1, "c": 0}
    assert within_budget(known, 5) == {"a": 2, "b": 0, "c": 0}, "b does not fit any more, what comes after it does"
    assert within_budget(known, 10**6) == {"a": 3, "b": 2, "c": 0}
    assert by_share(known, 0.6) == {"a": 1, "b": 1, "c": 0}, "17 of 25 is more than 0.6, 9 is not"
    assert by_share(known, 0.9) == {"a": 2, "b": 2, "c": 0}
    bounded = {site: Candidate(c.gains, c.per_rank, least=1, most=2) for site, c in known.items()}
    assert by_share(bounded, 0.99) == {"a": 2, "b": 2, "c": 1}
    assert within_budget({**known, "a": Candidate(known["a"].gains, 2, most=1)}, 100)["a"] == 1


def test_the_same_rank_everywhere() -> None:
    known = {"a": Candidate(torch.ones(1), 10), "b": Candidate(torch.ones(9), 20), "c": Candidate(torch.ones(9), 30)}
    assert same_everywhere(known, 110) == {"a": 1, "b": 2, "c": 2}
    assert same_everywhere(known, 130) == {"a": 1, "b": 3, "c": 2}, "20 bytes are left, and buy one more in b"
    with pytest.raises(DeltaError, match="rank 1 in all layers takes 60 bytes"):
        same_everywhere(known, 59)


def test_a_budget_too_small_says_what_would_do() -> None:
    known = {"a": Candidate(gains(2, 1), 400), "b": Candidate(gains(9, 1), 200, fixed=50)}
    with pytest.raises(DeltaError, match=r"249 bytes is too small for one rank: the smallest, of 'b', takes 250 bytes"):
        within_budget(known, 249)
    least = {site: Candidate(c.gains, c.per_rank, c.fixed, least=1) for site, c in known.items()}
    with pytest.raises(DeltaError, match="the least ranks of all layers take 650 bytes"):
        within_budget(least, 649)
    assert within_budget(least, 650) == {"a": 1, "b": 1}
    with pytest.raises(DeltaError, match="no rank has a gain"):
        by_share({"a": Candidate(gains(0, 0), 1)}, 0.5)


def test_every_layer_gets_the_least_ranks() -> None:
    """One layer has nearly all the gains; ``least: 1`` leaves the others a rank of the same budget."""
    layers = {name: nn.Linear(8, 8, bias=False) for name in "abc"}
    told = Told(nn.Sequential(*layers.values()), layers)
    seen = told.after(1)
    seen.squares = {"a": torch.full((8, 8), 1e6), "b": torch.ones(8, 8), "c": torch.ones(8, 8)}

    def ranks(method: type[RankedDelta], **asked: int) -> dict[str, int]:
        allocation = Allocation.model_validate({"budget": 3 * 64, **asked})  # rank 1 takes (8 + 8) · 4 bytes
        return choose_ranks(method, method.Settings(ranks=allocation), layers, seen)  # type: ignore[arg-type, call-arg]

    assert ranks(LowRank) == {"a": 3}
    assert ranks(LowRank, least=1) == {"a": 1, "b": 1, "c": 1}
    assert ranks(LowRank, budget=5 * 64, least=1) == {"a": 3, "b": 1, "c": 1}
    assert ranks(HALRP, budget=6 * 64) == {"a": 1, "b": 1, "c": 1}, "its own least is 1; R and S take a rank's bytes"
    assert ranks(HALRP, least=0) == {"a": 2}


def test_bytes_are_read_as_people_write_them() -> None:
    sizes = {"200KB": 200_000, "64KiB": 65_536, "1.5MB": 1_500_000, "300": 300, "2 MiB": 2**21, "10kb": 10_000}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    with pytest.raises(ValueError, match=r"expected bytes such as 200KB, 64KiB or 1\.5MB, found '200 potatoes'"):
        parse_bytes("200 potatoes")


@pytest.mark.parametrize(
    ("settings", "error_at"),
    [
        ({}, "give one of budget"),
        ({"budget": "1KB", "alpha": 0.9}, "give one of budget"),
        ({"budget": "many"}, "expected bytes such as"),
        ({"budget": 0}, "at least one byte"),
        ({"alpha": 0.9, "importance": "uniform"}, "uniform uses no gains"),
        ({"budget": 10, "importance": "uniform", "least": 0}, "gives every layer the same rank"),
        ({"budget": 10, "spectrum": "gradient", "importance": "feature_change"}, "resets the weights of a warm-up"),
        ({"budget": 10, "spectrum": "gradient", "start": "warm_up"}, "no warm-up of the weights to start from"),
        ({"budget": 10, "warm_up": 0}, "after 0 epochs no weight has changed"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict, error_at: str) -> None:
    with pytest.raises(ValueError, match=error_at):
        Allocation.model_validate(settings)
