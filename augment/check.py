"""Check an operation: each requirement of :mod:`augment.operation` is tested on real tensors.

Three verdicts: *ok*; *note*, a cost or a limit; *fail*, a requirement that is not met.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from augment.base import UserError
from augment.draws import Draws
from augment.operation import BarrierOp, Operation, SampledOp

Verdict = Literal["ok", "note", "fail"]
BATCH = 7
"""Images per check of a result; a prime, so that it equals no size inside an operation by chance."""
TOLERANCE = 1e-6
"""How far a sample alone may be from the same sample in a batch: sums may be taken in another order."""
GPU_TOLERANCE = 1e-4
ROUNDS = 5


@dataclass(frozen=True)
class CheckResult:
    """One line of the table that ``augment check`` prints."""

    check: str
    verdict: Verdict
    why: str


def examine(operation: Operation, size: tuple[int, int], batch: int = 32) -> list[CheckResult]:
    """Check every requirement on an operation.

    Args:
        operation: from :func:`augment.recipe.build`.
        size: (height, width) of the images that it is tried on.
        batch: how many images are timed.

    Returns:
        One result per check, in the order of the table.
    """
    checks: Sequence[tuple[str, Callable[[Operation, tuple[int, int]], tuple[Verdict, str]]]] = (
        ("kind", _kind),
        ("shape and type", _shape_and_type),
        ("range", _range),
        ("leaves its input alone", _input_left_alone),
        ("deterministic", _deterministic),
        ("one draw per sample", _draws_by_sample),
        ("batch-invariant", _batch_invariant),
        ("device", _device),
        ("compiles", _compiles),
        ("cost", lambda operation, size: _cost(operation, size, batch)),
    )
    results = []
    for name, check in checks:
        try:
            results.append(CheckResult(name, *check(operation, size)))
        except Exception as error:  # any error of a user's class is a result
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            results.append(CheckResult(name, "fail", text.strip().split("\n")[0]))
    return results


# --- Results -----------------------------------------------------------------------------------------------


def _kind(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    moves = ", moves pixels" if operation.geometric else ""
    if isinstance(operation, SampledOp):
        return "ok", (f"declarative: {operation.form}" if operation.form else "sampled: a barrier of its own") + moves
    if isinstance(operation, BarrierOp):
        return "note", f"any callable: a barrier, its draws are keyed for it{moves}"
    return "note", (type(operation).__doc__ or type(operation).__name__).splitlines()[0].rstrip(".") + moves


def _shape_and_type(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    sizes = set()
    for height, width in (size, (size[0] + 1, size[1] + 14)):
        images = _images(height, width)
        result = _run(operation, images)
        if not isinstance(result, Tensor) or result.ndim != 4 or result.shape[:2] != images.shape[:2]:
            shown = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            return "fail", f"expected [{BATCH}, 3, H, W] of images {list(images.shape)}, found {shown}"
        if result.dtype != images.dtype:
            return "fail", f"expected {images.dtype}, found {result.dtype}"
        if result.shape[2:] != images.shape[2:]:
            sizes.add(f"{height}×{width} → {result.shape[2]}×{result.shape[3]}")
    return ("note", "changes the size: " + ", ".join(sorted(sizes))) if sizes else ("ok", "unchanged")


def _range(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    result = _run(operation, _images(*size))
    if not result.isfinite().all():
        bad = int((~result.isfinite()).flatten(1).any(1).nonzero()[0])
        return "fail", f"NaN or infinite values, first in sample {bad}"
    low, high = float(result.min()), float(result.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        return "note", f"from {low:.3g} to {high:.3g}: outside [0, 1], which a chain clamps at its end"
    return "ok", f"stays in [0, 1]: from {low:.3g} to {high:.3g}"


def _input_left_alone(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    images = _images(*size)
    before = images.clone()
    _run(operation, images)
    if not torch.equal(images, before):
        return "fail", "changes its input in place: another view may start from the same pixels"
    return "ok", "the given images are unchanged"


# --- Draws --------------------------------------------------------------------------------------------------------


def _deterministic(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    images = _images(*size)
    state = torch.get_rng_state()
    first = _run(operation, images)
    if not torch.equal(torch.get_rng_state(), state):
        return "fail", "moves torch's global generator; take every number from the draws"
    if not torch.equal(first, _run(operation, images)):
        return "fail", "the same samples and draws give another result; take every number from the draws"
    return "ok", "the same draws give the same bits"


def _draws_by_sample(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    many = 64  # so that an operation with a probability of 0.1 changes some of them
    images = _images(*size)[:1].expand(many, -1, -1, -1)
    first, second = _run(operation, images), _run(operation, images, epoch=1)
    if len(torch.unique(first.flatten(1), dim=0)) > 1:
        return "ok", "the same image gives different results under other ids"
    if not torch.equal(first, second):
        return "fail", "one draw for all samples of an epoch; draw a tensor [B, …] for images [B, C, H, W]"
    return "note", f"draws nothing: {many} ids, two epochs, one result"


def _batch_invariant(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    images, ids = _images(*size), torch.arange(BATCH)
    together = _run(operation, images, ids)
    alone = torch.cat([_run(operation, images[n : n + 1], ids[n : n + 1]) for n in range(BATCH)])
    reversed_order = _run(operation, images.flip(0), ids.flip(0)).flip(0)
    for other, what in ((alone, "alone"), (reversed_order, "in another order")):
        apart = (together - other).abs().flatten(1).amax(1)
        worst = int(apart.argmax())
        if float(apart[worst]) > TOLERANCE:
            return "fail", f"sample {worst} differs by {float(apart[worst]):.2g} when {what}"
    same = torch.equal(together, alone) and torch.equal(together, reversed_order)
    return "ok", "alone, in a batch and in another order: " + ("the same bits" if same else f"within {TOLERANCE:g}")


# --- Where it runs, and how fast ------------------------------------------------------------------------------------


def _device(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    if not torch.cuda.is_available():
        return _simulated_device(operation, size)
    images = _images(*size)
    there = _run(copy.deepcopy(operation).to("cuda"), images.to("cuda"))
    if there.device.type != "cuda":
        return "fail", f"for images on the GPU, the result is on {there.device}"
    apart = float((there.cpu() - _run(operation, images)).abs().max())
    if apart > GPU_TOLERANCE:
        return "fail", f"{apart:.2g} from the CPU's result"
    return "ok", f"within {GPU_TOLERANCE:g} of the CPU's result"


def _simulated_device(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    """Trace shapes and devices without a GPU and without values."""
    if not isinstance(operation, SampledOp | BarrierOp):
        return "note", "no GPU here; a library's own operation cannot be traced without one"
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        moved = copy.copy(operation)
        _move(moved, lambda tensor: fake.from_tensor(tensor).to("cuda"))
        images = torch.empty(BATCH, 3, *size, device="cuda")
        try:
            if isinstance(moved, BarrierOp):
                made = moved.user(images)
            else:
                made = moved(images, _draws(torch.zeros(BATCH, dtype=torch.int64, device="cuda")))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            return (
                "note",
                f"no GPU here, traced only: it reads values on the host ({error}), which synchronizes with the GPU",
            )
    if made.device.type != "cuda":
        return "fail", f"for images on a GPU, the result is on {made.device}"
    return "ok", "no GPU here; traced: nothing stays on the CPU or synchronizes with the GPU"


def _move(module: nn.Module, to: Callable[[Tensor], Tensor]) -> None:
    """``module.to`` for the parameters and buffers of a shallow copy, whose children are copied in turn."""
    for kind in ("_parameters", "_buffers", "_modules"):
        module.__dict__[kind] = dict(module.__dict__[kind])
    for tensors in (module._parameters, module._buffers):
        tensors.update({name: to(tensor) for name, tensor in tensors.items() if tensor is not None})  # type: ignore[misc]
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = copied = copy.copy(child)
            _move(copied, to)


def _compiles(operation: Operation, size: tuple[int, int]) -> tuple[Verdict, str]:
    images = _images(*size)
    if isinstance(operation, SampledOp):
        work, arguments = operation.run, (images, operation.sample(_draws(torch.arange(BATCH)), images.shape))
    elif isinstance(operation, BarrierOp):
        return "note", "a barrier runs uncompiled, between the compiled passes"
    else:
        return "note", "runs uncompiled, between the compiled passes"
    torch.compiler.reset()  # many operations of one class would reach its limit of recompilations
    try:
        made = torch.compile(work, backend="aot_eager", fullgraph=True)(*arguments)
    except Exception as error:  # dynamo raises dozens of types, and passes on the operation's own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return "note", f"runs uncompiled, because it breaks the graph: {reason}"
    apart = float((made - work(*arguments)).abs().max())
    return ("ok", "in one graph") if apart <= TOLERANCE else ("fail", f"the compiled result differs by {apart:.2g}")


def _cost(operation: Operation, size: tuple[int, int], batch: int) -> tuple[Verdict, str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    placement = copy.deepcopy(operation).to(device)
    images = _images(*size)[:1].expand(batch, -1, -1, -1).contiguous().to(device)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first is a warm-up
        started = time.perf_counter()
        _run(placement, images)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    each = median(seconds[1:]) / batch
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    return "ok", f"{each * 1e6:.0f} µs per image, {1 / each:,.0f} images/s; {batch} of {size[0]}×{size[1]} on {where}"


# --- Inputs ---------------------------------------------------------------------------------------------------------


def _images(height: int, width: int) -> Tensor:
    return torch.rand(BATCH, 3, height, width, generator=torch.Generator().manual_seed(0))


def _draws(ids: Tensor, epoch: int = 0) -> Draws:
    return Draws(0, epoch, "check", ids).op("check")


def _run(operation: Operation, images: Tensor, ids: Tensor | None = None, epoch: int = 0) -> Any:
    with torch.no_grad():
        return operation(images, _draws(torch.arange(len(images)) if ids is None else ids, epoch))
