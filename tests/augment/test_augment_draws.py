"""Draws: the same for a sample wherever it sits, and as random as draws should be."""

import math

import pytest
import torch

from augment.draws import Draws, _mix_, _mix_word, _signed, sample_key

IDS = torch.tensor([sample_key(f"sample {n}") for n in range(2000)])


def draws(seed=0, epoch=0, view="student", ids=IDS, op="Crop"):
    return Draws(seed, epoch, view, ids).op(op)


def test_mix_on_tensors_is_splitmix64():
    words = [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    mixed = _mix_(torch.tensor([_signed(word) for word in words]))
    assert mixed.tolist() == [_signed(_mix_word(word)) for word in words]
    # First output of the reference SplitMix64 with state 0: the finalizer of γ.
    assert _mix_word(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_values_are_pinned():
    """A run resumed with another version of this file must draw the same."""
    assert sample_key("a") == 0x654BC089650DDEE5
    first = Draws(1, 2, "student", torch.tensor([3])).op("Crop#0")
    assert first.bits(0).tolist() == [-1669924813612989209]


def test_a_sample_draws_the_same_in_any_batch_and_order():
    order = torch.randperm(len(IDS), generator=torch.Generator().manual_seed(0))
    whole = draws()
    for kind, args in [("uniform", ()), ("normal", ()), ("bernoulli", (0.3,)), ("integers", (0, 7))]:
        a = getattr(whole, kind)(1, *args, shape=(3, 2))
        assert torch.equal(a[order], getattr(draws(ids=IDS[order]), kind)(1, *args, shape=(3, 2)))
        assert torch.equal(a[5:6], getattr(draws(ids=IDS[5:6]), kind)(1, *args, shape=(3, 2)))
    padded = draws(ids=IDS[:2]).padded(5).uniform(0)
    assert torch.equal(padded, draws(ids=IDS[[0, 1, 1, 1, 1]]).uniform(0))


def test_a_longer_draw_begins_with_the_shorter():
    assert torch.equal(draws().uniform(0, (9,))[:, :4], draws().uniform(0, (4,)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draws().normal(0, (4, 4))
    draws().permutation(0, 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_is_uniform_in_every_dtype(dtype):
    u = draws().uniform(0, (50,), dtype=dtype)
    assert u.dtype == dtype and float(u.min()) >= 0 and float(u.max()) < 1
    counts = torch.histc(u.double().flatten(), bins=16, min=0, max=1)
    expected = u.numel() / 16
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 50  # 15 degrees of freedom: 50 has probability 1e-5


def test_normal_is_normal():
    z = draws().normal(0, (50,)).double().flatten()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert abs((z < -1.6449).double().mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / n)


def test_bernoulli_integers_permutation():
    assert abs(draws().bernoulli(0, 0.3, (50,)).float().mean() - 0.3) < 0.006
    per_sample = draws(ids=IDS[:2]).bernoulli(0, torch.tensor([[0.0], [1.0]]), (8,))
    assert per_sample.tolist() == [[False] * 8, [True] * 8]
    counts = draws().integers(0, -2, 3, (50,)).flatten().add(2).bincount()
    assert len(counts) == 5 and float((counts / 20000 - 1).abs().max()) < 0.04
    permutations = draws().permutation(0, 4)
    assert torch.equal(permutations.sort(dim=1).values, torch.arange(4).expand(2000, 4))
    assert len(permutations.unique(dim=0)) == 24
    with pytest.raises(ValueError, match="low=3, high=3"):
        draws().integers(0, 3, 3)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def test_everything_in_the_key_matters_and_gives_independent_draws():
    base = draws().uniform(0, (10,))
    others = {
        "seed": draws(seed=1).uniform(0, (10,)),
        "epoch": draws(epoch=1).uniform(0, (10,)),
        "view": draws(view="teacher").uniform(0, (10,)),
        "op": draws(op="Flip").uniform(0, (10,)),
        "slot": draws().uniform(1, (10,)),
        "neighboring id": draws(ids=IDS + 1).uniform(0, (10,)),
    }
    for name, other in others.items():
        assert not (base == other).any(dim=1).all(), name
        assert abs(correlation(base, other)) < 4 / math.sqrt(base.numel()), name
    assert abs(correlation(base[:, :-1], base[:, 1:])) < 4 / math.sqrt(18000), "elements of one draw"
    consecutive = draws(ids=torch.arange(2001)).uniform(0)
    assert abs(correlation(consecutive[:-1], consecutive[1:])) < 4 / math.sqrt(2000), "consecutive ids"


def test_no_two_samples_share_a_draw():
    ids = torch.arange(-5000, 5000)
    bits = torch.cat([draws(epoch=epoch, ids=ids).bits(slot) for epoch in range(3) for slot in range(3)])
    assert len(bits.unique()) == len(bits)


def test_seed_and_epoch_do_not_trade_places():
    assert not torch.equal(draws(seed=1, epoch=2).bits(0), draws(seed=2, epoch=1).bits(0))


def test_shared_draws_belong_to_no_sample():
    assert torch.equal(draws().shared().uniform(0, (4,)), draws(ids=IDS[:3]).shared().uniform(0, (4,)))
    assert draws().shared().uniform(0, (4,)).shape == (1, 4)


def test_ids_must_be_int64():
    with pytest.raises(ValueError, match=r"int64 \[B\], not torch.float32 \[2\]"):
        Draws(0, 0, "a", torch.zeros(2))
