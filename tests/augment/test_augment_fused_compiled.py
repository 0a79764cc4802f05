"""Fused chains compiled, copied, and on a GPU's path without a synchronization."""

import pickle

import pytest
import torch
import torch._dynamo  # looks torch.compiler.is_compiling up when it is imported: before a test replaces it
from augment_chains import (
    CROP,
    ERASE,
    FLIP,
    JITTER,
    SPEC,
    STRONG,
    TURN,
    chain,
    draws,
    pictures,
)
from torch.utils._python_dispatch import TorchDispatchMode

from augment.draws import counters


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique_dim", "equal"}


def test_on_a_gpu_the_host_waits_for_nothing():
    """On a GPU's path no operator brings a number to the host or makes a shape that depends on the data."""
    first = chain(TURN, *STRONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        run = first.passes.segments[0]
        source = draws()
        steps = [source.op(step.key) for step in run.kornia_steps]
        constants = counters(steps, run.counts, torch.device("cpu"))
        with Count() as count:
            run.whole(pictures(), source.ids, constants, {}, None)
    assert len(count.seen) > 50 and not WAITS & set(count.seen)


def test_gathering_is_counted():
    """The CPU's path reads which samples are drawn, and the counter sees it."""
    with Count() as count:
        chain(*STRONG, compile=False)(pictures(), draws())
    assert WAITS & set(count.seen)


def test_a_missing_compiler_is_warned_of_if_it_was_asked_for(monkeypatch):
    from augment.fuse import compiler

    monkeypatch.setattr(compiler, "missing_compiler", lambda device: "no compiler here")
    compiler.backend_for.cache_clear()
    first = chain(*STRONG, compile=True)
    with pytest.warns(UserWarning, match="runs without compiled passes: no compiler here"):
        view = first(pictures(), draws())
    assert torch.equal(view, first(pictures(), draws()))
    assert torch.equal(view, chain(*STRONG, compile="auto")(pictures(), draws()))
    compiler.backend_for.cache_clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own imports
def test_compiled_by_torch(monkeypatch):
    """torch.compile's passes, which are for a GPU, compiled for the CPU."""
    recipe = [CROP, FLIP, {**JITTER, "order": [0, 1, 2, 3]}, ERASE]
    plain, compiled = chain(*recipe), chain(*recipe)
    expected = [plain(pictures(batch), draws(batch), spec=SPEC) for batch in (8, 6, 4)]
    monkeypatch.setattr("augment.fuse.run.backend_for", lambda device, wanted: "torch.compile")
    torch._dynamo.utils.counters.clear()
    for batch, view in zip((8, 6, 4), expected):
        # In units of the std: 1e-5 of the pixels' range is 4.5e-5.
        torch.testing.assert_close(compiled(pictures(batch), draws(batch), spec=SPEC), view, rtol=0, atol=3e-5)
    assert torch._dynamo.utils.counters["frames"]["total"] <= 3  # one for the first size, one for all sizes


def test_a_chain_can_be_copied():
    first = pickle.loads(pickle.dumps(chain(*STRONG)))
    assert torch.equal(first(pictures(), draws()), chain(*STRONG)(pictures(), draws()))
