"""Kernels, synchronizations and bytes of the strong chain, for ``augment.py``; and its loops when compiled."""

from __future__ import annotations

from unittest import mock

import torch
from augment_sides import (
    SIZES,
    fused_chain,
    kornia_chain,
    source,
)
from measure import Row, exact
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = {"view", "_unsafe_view", "expand", "select", "slice", "split", "unbind", "permute", "transpose", "t", "alias"}
_VIEWS |= {
    "as_strided",
    "detach",
    "unsqueeze",
    "squeeze",
    "split_with_sizes",
    "lift_fresh",
    "_reshape_alias",
    "narrow",
    "detach_",
}


_WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal"}


_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "resolve_conj", "to"}


class Kernels(TorchDispatchMode):
    """Counts the kernels of a piece of code, its synchronizations if it ran on a GPU, and the bytes it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.waits += name in _WAITS
        if name in _VIEWS | _EMPTY | {"_local_scalar_dense"}:
            return made
        self.kernels += 1
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        self.bytes += sum(
            x.untyped_storage().nbytes() if x.numel() == 0 else x.numel() * x.element_size() for x in tensors
        )
        return made


def counts() -> list[Row]:
    """Kernels, synchronizations and bytes of one batch."""
    rows: list[Row] = []
    waits = 0
    for pixels in (32, 224):
        batch, kernel = SIZES[pixels]
        images = source(batch, pixels)
        floor = images.numel() + batch * 3 * pixels * pixels * 4
        for side, run in (
            ("", fused_chain(images, pixels, kernel, compile=False)),
            ("_kornia", kornia_chain(images, pixels, kernel)),
        ):
            run()
            with Kernels() as seen:
                run()
            rows.append(exact(f"kernels{side}_{pixels}", seen.kernels, ""))
            rows.append(exact(f"bytes_over_floor{side}_{pixels}", seen.bytes / floor, "×"))
            if side:
                rows.append(exact(f"host_syncs{side}_{pixels}", seen.waits, ""))
        waits += waits_on_a_gpus_path(images, pixels, kernel)
    return [exact("host_syncs", waits, ""), *rows]


def waits_on_a_gpus_path(images: Tensor, pixels: int, kernel: int) -> int:
    run = fused_chain(images, pixels, kernel)
    run()
    original = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        with Kernels() as seen:
            run()
    finally:
        torch.compiler.is_compiling = original
    return seen.waits


def compiled_kernels() -> list[Row]:
    """Loops of the strong chain at 32 pixels compiled by torch.compile, as for a GPU, but on the CPU."""
    from torch._inductor import metrics
    from torch._inductor.utils import run_and_get_code

    batch, kernel = SIZES[32]
    metrics.reset()
    with mock.patch("augment.fuse.run.backend_for", lambda device, wanted: "torch.compile"):
        run = fused_chain(source(batch, 32), 32, kernel)
        _, programs = run_and_get_code(run)
        generated = metrics.generated_kernel_count
        run()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
    # Work that is not in the compiler's loops appears as operators of torch.
    names = [event.name.removeprefix("aten::") for event in seen.events() if event.name.startswith("aten::")]
    left = sum(name not in _VIEWS | _EMPTY for name in names)
    functions = sum(program.count("= async_compile.cpp") for program in programs)
    return [exact("kernels_compiled", generated + left, ""), exact("calls_compiled", functions + left, "")]
