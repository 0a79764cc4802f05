"""Draws are as random as independent uniform numbers would be, along every part of their key.

All seeds are fixed, so nothing here can flake. Bounds are wide: a good generator passes each with probability above
1 - 1e-5, a weakness along any axis (consecutive ids, epochs, slots …) is far outside.
"""

import math

import pytest
import torch
from scipy import stats

from augment.draws import Draws, sample_key

N = 4096
HASHED = torch.tensor([sample_key(f"train/{n:05d}.jpeg") for n in range(N)])
CONSECUTIVE = torch.arange(N)
SPARSE = torch.arange(N) << 40
LEVEL = 1e-5


def draws(seed=0, epoch=0, view="student", op="RandomResizedCrop#0", ids=HASHED):
    return Draws(seed, epoch, view, ids).op(op)


AXES = {
    "hashed ids": lambda n: draws().uniform(0)[n],
    "consecutive ids": lambda n: draws(ids=CONSECUTIVE).uniform(0)[n],
    "ids that differ in high bits": lambda n: draws(ids=SPARSE).uniform(0)[n],
    "negative ids": lambda n: draws(ids=-CONSECUTIVE).uniform(0)[n],
    "epochs": lambda n: draws(epoch=n, ids=HASHED[:1]).uniform(0)[0],
    "seeds": lambda n: draws(seed=n, ids=HASHED[:1]).uniform(0)[0],
    "views": lambda n: draws(view=f"local{n}", ids=HASHED[:1]).uniform(0)[0],
    "operations": lambda n: draws(op=f"ColorJitter#{n}", ids=HASHED[:1]).uniform(0)[0],
    "slots": lambda n: draws(ids=HASHED[:1]).uniform(n)[0],
    "elements": lambda n: draws(ids=HASHED[:1]).uniform(0, (N,))[0, n],
}
WHOLE = {
    "hashed ids": lambda: draws().uniform(0),
    "consecutive ids": lambda: draws(ids=CONSECUTIVE).uniform(0),
    "ids that differ in high bits": lambda: draws(ids=SPARSE).uniform(0),
    "negative ids": lambda: draws(ids=-CONSECUTIVE).uniform(0),
    "elements": lambda: draws(ids=HASHED[:1]).uniform(0, (N,))[0],
}


@pytest.fixture(scope="module")
def along() -> dict[str, torch.Tensor]:
    """[N] uniform draws along every axis of the key, all else the same."""
    return {
        name: (WHOLE[name]() if name in WHOLE else torch.stack([value(n) for n in range(N)])).double()
        for name, value in AXES.items()
    }


@pytest.mark.slow
def test_each_axis_is_read_as_it_says(along):
    for name, value in AXES.items():
        assert [float(value(n)) for n in (0, 1, 77)] == along[name][[0, 1, 77]].tolist(), name


def test_uniform_along_every_axis(along):
    """Kolmogorov and Smirnov's distance, and χ² over 64 cells."""
    for name, u in along.items():
        assert stats.kstest(u.numpy(), "uniform").pvalue > LEVEL, name
        assert stats.chisquare(torch.histc(u, 64, 0, 1).numpy()).pvalue > LEVEL, name


def test_independent_of_its_neighbor_along_every_axis(along):
    """Pairs at distances 1, 2 and 64: no correlation, and χ² on the 16 × 16 cells of the square."""
    for name, u in along.items():
        for lag in (1, 2, 64):
            a, b = u[:-lag], u[lag:]
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4.5 / math.sqrt(len(a)), (name, lag)
            cells = ((a * 16).long() * 16 + (b * 16).long()).bincount(minlength=256)
            assert stats.chisquare(cells.numpy()).pvalue > LEVEL, (name, lag)


def test_runs_up_and_down(along):
    """The number of turning points of N independent values is normal with mean 2(N-2)/3 and variance (16N-29)/90."""
    for name, u in along.items():
        turning_points = int(((u[1:-1] > u[:-2]) == (u[1:-1] > u[2:])).sum())
        z = (turning_points - 2 * (N - 2) / 3) / math.sqrt((16 * N - 29) / 90)
        assert abs(z) < 4.5, (name, z)


def test_axes_are_independent_of_each_other():
    """The whole table of (2 seeds, 3 epochs, 2 views, 2 ops, 3 slots) × ids: every pair of rows uncorrelated."""
    rows = [
        draws(seed, epoch, view, op).uniform(slot)
        for seed in (0, 1)
        for epoch in range(3)
        for view in ("teacher", "student")
        for op in ("RandomResizedCrop#0", "RandomResizedCrop#1")
        for slot in range(3)
    ]
    correlation = torch.corrcoef(torch.stack(rows).double()) - torch.eye(len(rows))
    # 2556 pairs, each normal with sd 1/√N: the largest of them.
    assert float(correlation.abs().max()) < 5.5 / math.sqrt(N)


def test_every_bit_is_a_fair_coin_and_changes_with_every_bit_of_the_id():
    """Avalanche: an id that differs in one bit has a word that differs in each bit with probability 1/2."""
    shifts = torch.arange(64)
    bits = (draws().bits(0)[:, None] >> shifts) & 1
    sd = math.sqrt(N) / 2
    assert float((bits.sum(0) - N / 2).abs().max()) < 5 * sd
    pairs = torch.corrcoef(bits.double().T) - torch.eye(64)
    assert float(pairs.abs().max()) < 5.5 / math.sqrt(N)
    for flipped in range(0, 63, 3):
        other = draws(ids=HASHED ^ (1 << flipped)).bits(0)
        changed = ((draws().bits(0) ^ other)[:, None] >> shifts) & 1
        assert float((changed.sum(0) - N / 2).abs().max()) < 5.5 * sd, flipped


def test_no_two_of_a_million_words_collide():
    """By the birthday bound, 2²⁰ uniform 64-bit words collide with probability 3e-8; 32-bit ones would 128 times."""
    epochs = [
        draws(epoch=epoch, view=view).bits(slot, (8,)) for epoch in range(4) for view in "ab" for slot in range(4)
    ]
    words = torch.stack(epochs).flatten()
    assert len(words) == 2**20 and len(words.unique()) == len(words)
    half = ((words >> 32) & 0xFFFFFFFF).unique()
    expected = 2**20 - 2**40 / 2**33
    assert abs(len(half) - expected) < 6 * math.sqrt(2**40 / 2**33), "the upper halves collide as often as they should"


def test_keys_are_not_added_up():
    """Generators that add seed, epoch and id to one counter repeat themselves one epoch later, one sample on."""
    base = draws(ids=CONSECUTIVE).bits(0, (4,)).flatten()
    for other in (
        draws(epoch=1, ids=CONSECUTIVE - 1),
        draws(epoch=1, ids=CONSECUTIVE),
        draws(seed=1, ids=CONSECUTIVE - 1),
        draws(seed=1, epoch=-1, ids=CONSECUTIVE),
    ):
        assert not torch.isin(other.bits(0, (4,)).flatten(), base).any()
    slots = torch.stack([draws(ids=CONSECUTIVE).bits(slot, (64,)) for slot in range(8)]).flatten()
    assert len(slots.unique()) == len(slots), "a long draw does not run into the next slot's"


def test_normal_moments_tails_and_independence():
    z = draws().normal(0, (32,)).double()
    flat = z.flatten()
    count = len(flat)
    assert stats.kstest(flat.numpy(), "norm").pvalue > LEVEL
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        sd = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / count)
        assert abs(float((flat**power).mean()) - moment) < 4.5 * sd, power
    expected = count * 2 * stats.norm.sf(4)
    assert abs(int((flat.abs() > 4).sum()) - expected) < 4.5 * math.sqrt(expected), "the tails are there"
    assert flat.isfinite().all() and float(flat.abs().max()) < 6.7
    assert abs(float(torch.corrcoef(torch.stack([flat[:-1], flat[1:]]))[0, 1])) < 4.5 / math.sqrt(count)
    squares = torch.corrcoef(torch.stack([flat[:-1] ** 2, flat[1:] ** 2]))[0, 1]
    assert abs(float(squares)) < 4.5 / math.sqrt(count), "nor are their sizes"


def test_every_order_of_a_permutation_is_as_likely():
    """χ² over the 24 orders of four, over where each element of nine lies, and over samples' neighbors' orders."""
    order = draws(ids=torch.arange(24 * 400)).permutation(0, 4)
    code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > LEVEL
    nine = draws(ids=torch.arange(9000)).permutation(1, 9)
    for element in range(9):
        positions = (nine == element).nonzero()[:, 1].bincount(minlength=9)
        assert stats.chisquare(positions.numpy()).pvalue > LEVEL, element
    same = int((code[1:] == code[:-1]).sum())
    assert abs(same - len(code) / 24) < 4.5 * math.sqrt(len(code) / 24)


@pytest.mark.parametrize("high", [2, 3, 7, 10, 100])
def test_integers_are_uniform_over_any_range(high):
    counts = draws().integers(0, 0, high, (8,)).flatten().bincount(minlength=high)
    assert len(counts) == high and stats.chisquare(counts.numpy()).pvalue > LEVEL


def test_bernoulli_of_any_probability():
    for p in (0.01, 0.2, 0.5, 0.8, 0.99):
        happened = int(draws().bernoulli(0, p, (16,)).sum())
        count = 16 * N
        assert abs(happened - count * p) < 4.5 * math.sqrt(count * p * (1 - p)), p
    assert not draws().bernoulli(0, 0.0, (16,)).any() and draws().bernoulli(0, 1.0, (16,)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same_numbers():
    here, there = draws(), draws().to("cuda")
    assert torch.equal(here.bits(3, (5,)), there.bits(3, (5,)).cpu())
    assert torch.equal(here.uniform(3, (5,)), there.uniform(3, (5,)).cpu())
    assert torch.equal(here.permutation(3, 5), there.permutation(3, 5).cpu())
    torch.testing.assert_close(there.normal(3, (5,)).cpu(), here.normal(3, (5,)), rtol=1e-5, atol=1e-5)
