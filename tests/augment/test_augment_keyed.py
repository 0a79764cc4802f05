"""Code that uses torch's global generator draws by sample, or is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from augment.draws import Draws
from augment.keyed import DrawError, KeyedDraws, padded_rows
from augment.operation import BarrierOp

IMAGES = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(100, 106)


class Tensorwise(nn.Module):
    """Draws in as many ways as torch has, some by sample and some for the batch."""

    def forward(self, x):
        n = len(x)
        total = torch.rand(n, 1, 1, 1) + torch.randn(n, 1, 1, 1, dtype=torch.float64).float()
        total = total + torch.rand_like(x) + torch.randn_like(x) + torch.empty_like(x).uniform_(-1, 2)
        total = total + torch.empty_like(x).normal_(1, 3) + torch.empty(n, 1, 1, 1).exponential_(2.0)
        total = total + torch.bernoulli(torch.full_like(x, 0.4)) + torch.bernoulli(x, 0.2)
        total = (
            total + torch.empty_like(x).bernoulli_(0.7) + torch.normal(x, 0.5) + torch.normal(0.0, 1.0, (n, 1, 1, 1))
        )
        total = total + torch.randint(5, (n, 1, 1, 1)) + torch.randint(2, 9, (n, 1, 1, 1)) + torch.randint_like(x, 4)
        total = total + torch.multinomial(torch.ones(n, 5), 2).float().mean(1).view(n, 1, 1, 1)
        total = total + torch.multinomial(torch.ones(n, 5), 7, replacement=True).float().mean(1).view(n, 1, 1, 1)
        total = total + torch.distributions.Uniform(0.0, 1.0).sample((n, 1, 1, 1))
        total = total + nn.functional.dropout(x, 0.5, training=True)
        return (total * torch.rand(4).sum())[:, torch.randperm(3)]


def run(op, images=IMAGES, ids=IDS, epoch=0):
    return op(images, Draws(0, epoch, "student", ids).op("op"))


def test_every_kind_of_draw_belongs_to_its_sample():
    op = BarrierOp(Tensorwise(), "Tensorwise")
    state = torch.get_rng_state()
    together = run(op)
    alone = torch.cat([run(op, IMAGES[n : n + 1], IDS[n : n + 1]) for n in range(6)])
    backwards = run(op, IMAGES.flip(0), IDS.flip(0)).flip(0)
    assert torch.equal(together, alone) and torch.equal(together, backwards)
    assert torch.equal(together, run(op)) and not torch.equal(together, run(op, epoch=1))
    assert len({tuple(row.flatten().tolist()) for row in run(op, IMAGES[:1].expand(6, -1, -1, -1))}) == 6
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [1, 3, 4, 11, 13, 16])
def test_a_draw_for_the_batch_is_never_taken_for_one_by_sample(batch):
    """randperm(4) in a batch of 4 is no draw by sample: every batch size sees the same one."""

    def shuffle(x):
        return x * torch.rand(4)[torch.randperm(4)].sum() * torch.rand(16, 2).sum() * torch.rand(1)

    images = IMAGES[:1].expand(batch, -1, -1, -1)
    assert torch.equal(run(BarrierOp(shuffle, "shuffle"), images, torch.arange(batch))[:1], run_reference(shuffle))


def run_reference(function):
    return run(BarrierOp(function, "shuffle"), IMAGES[:1], torch.arange(1))


def test_distributions_are_right():
    draws = Draws(0, 0, "a", torch.arange(10007)).op("x")
    with KeyedDraws(draws, "x"):
        n = 10007
        assert abs(torch.empty(n).exponential_(2.0).mean() - 0.5) < 0.02
        assert abs(torch.empty(n).uniform_(-1, 3).mean() - 1) < 0.05
        assert abs(torch.normal(2.0, 3.0, (n,)).std() - 3) < 0.1
        weights = torch.tensor([1.0, 2.0, 0.0, 7.0]).expand(n, 4)
        with_return = torch.multinomial(weights, 1, replacement=True).flatten().bincount(minlength=4) / n
        without = torch.multinomial(weights, 1).flatten().bincount(minlength=4) / n
        expected = torch.tensor([0.1, 0.2, 0.0, 0.7])
        assert float((with_return - expected).abs().max()) < 0.02
        assert float((without - expected).abs().max()) < 0.02
        kept = nn.functional.dropout(torch.ones(n), 0.25, training=True)
        assert abs((kept > 0).float().mean() - 0.75) < 0.02 and abs(kept.max() - 1 / 0.75) < 1e-6


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x[torch.randperm(len(x))], "bad permutes the batch"),
        (lambda x: x + x[torch.randint(len(x), (1,))], "bad draws an index into the batch"),
        (
            lambda x: x * torch.rand(len(x) * 3).view(-1, 3, 1, 1),
            "bad draws a tensor .*; the batch B must be its first",
        ),
        (lambda x: x * torch.rand(3, len(x)).T[..., None, None], r"draws a tensor \[3, B\]"),
        (lambda x: torch.stack([image * torch.rand(()) for image in x]), "many times without a batch dimension"),
        (lambda x: x * torch.empty(len(x), 1, 1, 1).cauchy_(), "bad draws with aten.cauchy_.default"),
        (lambda x: x * torch.seed(), "torch's global generator"),
        (lambda x: x * random.random(), "Python's global generator"),
        (lambda x: x * np.random.rand(), "NumPy's global generator"),  # noqa: NPY002
        (lambda x: x.mean(0), r"bad must return a tensor \[11, C, H, W\], not \[3, 12, 12\]"),
        (lambda x: None, "not NoneType"),
    ],
)
def test_what_cannot_be_tied_to_samples_is_refused(function, message):
    with torch.random.fork_rng(), pytest.raises((DrawError, ValueError), match=message):
        run(BarrierOp(function, "bad"))


def test_an_error_inside_is_not_hidden():
    def broken(x):
        random.random()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(BarrierOp(broken, "broken"))


def test_padded_rows_is_a_prime_that_no_size_is_a_multiple_of():
    assert padded_rows(1, (3, 32, 32)) == 11
    assert padded_rows(11, (3, 32, 32)) == 11
    assert padded_rows(12, (3, 224, 224)) == 13
    assert padded_rows(64, (3, 67, 134)) == 71
    assert padded_rows(2, (3, 22, 26)) == 17
