"""Steps: a list of operations, planned into few passes, and the draws of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from augment.base import UserError
from augment.draws import Draws
from augment.fuse.compiler import Compile, missing_compiler
from augment.fuse.planner import Barrier, PlannedOp, Segment, plan
from augment.fuse.program import Finish, to_unit
from augment.fuse.run import FusedSegment
from augment.kornia_ops import FusedKorniaOp
from augment.operation import Operation, SampledOp

Engine = Literal["fused", "kornia"]


class ImageError(UserError, ValueError):
    """Images that an operation cannot work on; the text names the operation, the samples and what was expected."""


class Steps(nn.Module):
    """Operations in order, computed in the passes of :mod:`augment.fuse.planner`.

    Draws are keyed by an operation's name and how many of that name came before it, not by its position: adding a color
    operation does not change the crop.

    Args:
        operations: in order.
        engine: "fused" plans operations together; "kornia" does one after another, kornia's by kornia's own code.
        compile: whether the passes are compiled; see :class:`augment.chain.Chain`.
    """

    def __init__(self, operations: Sequence[Operation], engine: Engine = "fused", compile: Compile = "auto"):
        super().__init__()
        self.engine, self._compile = engine, compile
        self.operations = nn.ModuleList(operations)
        seen: Counter[str] = Counter()
        self.steps: list[PlannedOp] = []
        for n, operation in enumerate(operations):
            operation.configure(engine, compile)
            self.steps.append(PlannedOp(n, f"{operation.key}#{seen[operation.key]}", operation))
            seen[operation.key] += 1
        self.stages = plan(self.steps)
        self.segments = {
            n: FusedSegment(stage, compile) for n, stage in enumerate(self.stages) if isinstance(stage, Segment)
        }

    def extra_repr(self) -> str:
        return f"engine={self.engine}, passes={len(self.stages)}"

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def leaves(self) -> Iterator[tuple[PlannedOp, Operation]]:
        """The operations that do the work, those inside others too, each with the step that it belongs to."""
        for step in self.steps:
            for leaf in step.operation.leaves():
                yield step, leaf

    @property
    def keeps_range(self) -> bool:
        """Whether [0, 1] stays [0, 1]: noise, bicubic reading and users' operations may leave it."""
        users = [getattr(leaf, "user", None) for _, leaf in self.leaves]
        return all(isinstance(user, FusedKorniaOp) and user.keeps_range for user in users)

    def plan(self) -> list[str]:
        """The passes, a line each; the operations inside a container follow it, indented."""
        return [line for stage in self.stages for line in str(stage).splitlines()]

    def on_a_cpu(self) -> str:
        """How the fused passes are computed on a CPU; empty if there are none."""
        if not self.segments:
            return ""
        if self.engine == "kornia" or not self._compile:
            return "by torch's operators"
        if missing := missing_compiler("cpu"):
            return f"by torch's operators: {missing}"
        stretches = [stretch for segment in self.segments.values() for stretch in segment.stretches()]
        by_torch = [part for in_c, parts in stretches if not in_c for part in parts]
        names = " + ".join(step.operation.name for part in by_torch for step in part.steps)
        return f"in C; by torch's operators {names}" if names else "in C"

    def forward(self, images: Tensor, draws: Draws, geometry: Draws, finish: Finish | None = None) -> Tensor:
        """Apply the operations.

        Args:
            images: [B, C, H, W], uint8, or floats in [0, 1].
            draws: on the images' device.
            geometry: draws for the operations that move pixels; on the images' device.
            finish: clamping, size and normalization; None: neither.

        Returns:
            [B, C, h, w] floats.
        """
        if self.engine == "kornia":
            x = to_unit(images)
            for step in self.steps:
                x = _by_kornia(step, x, draws, geometry)
            return x if finish is None else finish(x)

        def source(step: PlannedOp) -> Draws:
            return (geometry if step.operation.geometric else draws).op(step.key)

        x = images
        last = len(self.stages) - 1
        for n, stage in enumerate(self.stages):
            if isinstance(stage, Barrier):
                x = alone(stage.step, to_unit(x), draws, geometry)
            else:
                x = self.segments[n](x, source, finish if n == last else None)
        if finish is None:
            return to_unit(x)
        return x if self.stages and isinstance(self.stages[-1], Segment) else finish(to_unit(x))


def alone(step: PlannedOp, images: Tensor, draws: Draws, geometry: Draws) -> Tensor:
    """One step by itself.

    Args:
        step: the operation, and the key of its draws.
        images: [B, C, H, W] floats.
        draws: of the view.
        geometry: draws for what moves pixels.

    Returns:
        The changed images.

    Raises:
        ImageError: the result is no image batch of as many samples and channels.
    """
    changed = step.operation.run_with(images, draws.op(step.key), geometry.op(step.key))
    if not isinstance(changed, Tensor):
        result = type(changed).__name__
    elif changed.ndim != 4 or changed.shape[:2] != images.shape[:2]:
        result = f"{str(changed.dtype).removeprefix('torch.')} {list(changed.shape)}"
    elif not changed.is_floating_point() and changed.dtype != torch.uint8:
        result = str(changed.dtype).removeprefix("torch.")
    else:
        return changed
    samples, channels = images.shape[:2]
    wanted = f"floats [{samples}, {channels}, H, W], as many samples and channels as it was given"
    raise ImageError(f"{step.operation.name} (operation {step.index + 1}) returned {result}, expected {wanted}")


def _by_kornia(step: PlannedOp, images: Tensor, draws: Draws, geometry: Draws) -> Tensor:
    operation = step.operation
    if isinstance(operation, SampledOp) and isinstance(operation.user, FusedKorniaOp):
        source = (geometry if operation.geometric else draws).op(step.key)
        return operation.user.by_kornia(images, operation.sample(source, images.shape))
    return alone(step, images, draws, geometry)
