"""The passes in C: each image goes through all passes while it is in the processor's cache.

A step becomes an :class:`Instruction`: what to do, and a row of numbers for every sample. ``passes.c`` carries the
instructions out. A C compiler makes a library of it on first use in a process, in about a second, for the processor
that it runs on. Without a compiler torch's operators compute the same steps (:mod:`augment.fuse.run`) with the same
results, a few times slower.

Measured on one core (AVX2), strong chain: 128 images at 32 pixels take 10 ms by torch's operators and 3.8 ms here, 32
images at 224 pixels 73 and 16 ms.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-std=c11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
PADDINGS = ("zeros", "border", "reflection", "symmetric")
PART = 2**16
"""Values per thread, at least."""


class Kind(IntEnum):
    """The kinds of instruction, numbered as in ``passes.c``, which documents their parameters."""

    READ = 0
    JITTER = 1
    GRAY = 2
    SOLARIZE = 3
    LINEAR = 4
    BLUR = 5
    ERASE = 6


@dataclass(frozen=True)
class Instruction:
    """One step for a batch.

    ``numbers`` [B, n] float64 are the step's parameters; for every kind but READ the first is 1 if the sample is drawn.
    ``first`` and ``second`` are integer parameters that all samples share.
    """

    kind: Kind
    numbers: Tensor
    first: int = 0
    second: int = 0


class NoCompiler(RuntimeError):
    """The passes cannot be compiled here; the text says why."""


def instruction(
    kind: Kind, drawn: Tensor, *numbers: Tensor | Sequence[float], first: int = 0, second: int = 0
) -> Instruction:
    """Make an instruction of the C library.

    Args:
        kind: what is computed.
        drawn: [B] bool, the samples that change.
        numbers: its parameters: [B] or [B, n] tensors, or sequences that hold for all samples.
        first: integer argument, by kind.
        second: integer argument, by kind.

    Returns:
        The instruction, with its numbers as one float64 table.
    """
    rows = len(drawn)
    columns = [drawn, *(x if isinstance(x, Tensor) else torch.tensor([x]).expand(rows, -1) for x in numbers)]
    return Instruction(kind, torch.cat([x.detach().reshape(rows, -1).double() for x in columns], 1), first, second)


def linear(
    drawn: Tensor,
    channels: int,
    scale: Tensor | Sequence[float],
    shift: Tensor | Sequence[float],
    clamps: tuple[bool, bool] = (False, False),
) -> Instruction:
    """The instruction ``scale · x + shift``.

    Args:
        drawn: [B] bool, the samples that change.
        channels: of the images.
        scale: by sample [B], or by channel.
        shift: by sample [B], or by channel.
        clamps: whether to clamp to [0, 1] before, and after.

    Returns:
        The instruction.
    """
    wide = [x[:, None].expand(-1, channels) if isinstance(x, Tensor) else x for x in (scale, shift)]
    return instruction(Kind.LINEAR, drawn, *wide, first=clamps[0] + 2 * clamps[1])


def carried_out(instructions: Sequence[Instruction], images: Tensor, size: tuple[int, int]) -> Tensor:
    """Run instructions of the C library on images.

    Args:
        instructions: in order; the size changes only where the first is READ.
        images: [B, C, H, W], uint8 or float32.
        size: (height, width) of the result.

    Returns:
        float32 [B, C, *size], a new tensor.
    """
    images = images.contiguous()
    batch, channels, height, width = images.shape
    if instructions[0].kind == Kind.READ:
        result = torch.empty(batch, channels, *size)
    else:
        result = images.float().mul_(1 / 255) if images.dtype == torch.uint8 else images.clone()
    table = torch.cat([entry.numbers for entry in instructions], 1).contiguous()
    steps, start = [], 0
    for entry in instructions:
        steps.append((int(entry.kind), start, entry.first, entry.second))
        start += entry.numbers.shape[1]
    program = torch.tensor(steps, dtype=torch.int64)
    run = library()

    def part(rows: range) -> int:
        return run(
            images[rows.start].data_ptr(), int(images.dtype == torch.uint8), len(rows), channels, height, width,
            result[rows.start].data_ptr(), *size, program.data_ptr(), len(steps),
            table[rows.start].data_ptr(), table.shape[1],
        )  # fmt: skip

    threads = max(1, min(torch.get_num_threads(), batch, result.numel() // PART))
    edges = [batch * n // threads for n in range(threads + 1)]
    parts = [range(*ends) for ends in pairwise(edges)]
    if threads == 1:
        failed = part(parts[0])
    else:
        with ThreadPoolExecutor(threads) as pool:  # ctypes releases the GIL
            failed = max(pool.map(part, parts))
    if failed:
        raise MemoryError("not enough memory for the buffers of a blur and a crop")
    return result


@cache
def library() -> Callable[..., int]:
    """``run`` of ``passes.c``, compiled for this processor.

    Raises:
        NoCompiler: there is none, compiling fails, or the library cannot be loaded from the temporary folder.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or [name for name in COMPILERS if shutil.which(name)][:1]
    if not compiler or shutil.which(compiler[0]) is None:
        raise NoCompiler("no C compiler is found; install gcc, or set CC")
    # Not cached on disk: one second per process is cheap, and others could change a file outside the run's folder.
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return _loaded(_compiled(compiler, Path(scratch) / "passes.so"))
        except OSError as error:
            raise NoCompiler(f"the library that {compiler[0]} made could not be loaded: {error}") from error


def _compiled(compiler: Sequence[str], target: Path) -> Path:
    command = [*compiler, *FLAGS, str(SOURCE), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise NoCompiler(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:]}")
    return target


def _loaded(file: Path) -> Callable[..., int]:
    run = ctypes.CDLL(str(file)).run
    integer, address = ctypes.c_int64, ctypes.c_void_p
    run.argtypes = [address, *[integer] * 5, address, integer, integer, address, integer, address, integer]
    run.restype = ctypes.c_int
    return run
