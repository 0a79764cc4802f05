"""The planner: group the operations of a recipe into as few passes over the image as possible.

Operations that declare a form (:mod:`augment.operation`) are gathered into *segments*; any other operation is a barrier
between two of them. In a segment

- neighboring ``affine`` operations become one resampling;
- neighboring ``color`` and ``erase`` operations become one pass;
- a ``kernel`` is a pass of its own;
- a flip is moved ahead of the color and blur operations before it, into the resampling before them: it moves whole
  pixels within the frame, and neither of them depends on a pixel's position. No other operation is moved: a rotation
  after a color jitter interpolates between clamped pixels, and adds black pixels that the jitter's mean does not
  include.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from augment.fuse.geometry import resample_of
from augment.operation import Operation, SampledOp

Kind = Literal["geometry", "color", "blur"]
_KINDS: dict[str | None, Kind] = {"affine": "geometry", "color": "color", "erase": "color", "kernel": "blur"}


@dataclass(frozen=True)
class PlannedOp:
    """An operation with its index in the recipe and the key of its draws."""

    index: int
    key: str
    operation: Operation

    @property
    def user(self) -> Any:
        """The object that declares the form."""
        assert isinstance(self.operation, SampledOp)
        return self.operation.user


@dataclass(frozen=True)
class Pass:
    """Steps that are computed together."""

    kind: Kind
    steps: tuple[PlannedOp, ...]

    def __str__(self) -> str:
        names = " + ".join(step.operation.name for step in self.steps)
        return f"{self.kind:9}{names}: {self.how}"

    @property
    def mirrors(self) -> bool:
        """Whether the pass consists of flips only, which need no interpolation."""
        return all(map(_mirror, self.steps))

    @property
    def how(self) -> str:
        """The method of the pass, in words."""
        if self.kind == "color":
            return "pixel by pixel"
        if self.kind == "blur":
            return "two filters along the axes"
        if self.mirrors:
            return "whole pixels"
        resample, padding = self.reading
        return f"one {resample} reading{', axis by axis' if self.axis_aligned else ''}, {padding} beyond the border"

    @property
    def axis_aligned(self) -> bool:
        return all(getattr(step.user, "axis_aligned", False) for step in self.steps)

    @property
    def reading(self) -> tuple[str, str]:
        """(resample, padding) of a geometry pass: of the first step that reads beyond the frame, else the first."""
        users = [step.user for step in self.steps if not _mirror(step)] or [self.steps[0].user]
        beyond = [user for user in users if not getattr(user, "stays_inside", False)]
        return resample_of(users[0])[0], resample_of((beyond or users)[0])[1]

    @property
    def parts(self) -> list[Pass]:
        """The parts that can be computed apart: a geometry pass as a whole, else each step."""
        return [self] if self.kind == "geometry" else [Pass(self.kind, (step,)) for step in self.steps]

    @property
    def in_c(self) -> bool:
        """Whether :mod:`augment.fuse.passes` has an instruction for it."""
        if self.kind == "geometry":
            framed = any(not getattr(step.user, "stays_inside", False) for step in self.steps[1:])
            return self.axis_aligned and not framed and self.reading[0] == "bilinear"
        return all(step.operation.form != "color" or hasattr(step.user, "instruction") for step in self.steps)

    def takes(self, step: PlannedOp) -> bool:
        """Whether a following step can join this pass."""
        if _KINDS[step.operation.form] != self.kind or self.kind == "blur":
            return False
        if self.kind == "color" or _mirror(step):
            return True
        resample, padding = resample_of(step.user)
        if self.mirrors:
            return True
        inside = getattr(step.user, "stays_inside", False)
        return resample == self.reading[0] == "bilinear" and (inside or padding == "zeros")


@dataclass(frozen=True)
class Segment:
    """Passes between two barriers."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.passes))

    @property
    def steps(self) -> list[PlannedOp]:
        """The steps in the recipe's order: the order in which shapes change."""
        return sorted((step for pass_ in self.passes for step in pass_.steps), key=lambda step: step.index)


@dataclass(frozen=True)
class Barrier:
    """An operation that is computed by itself, between two segments."""

    step: PlannedOp

    def __str__(self) -> str:
        operation = self.step.operation
        return "\n".join([f"{'barrier':9}{operation.name}: {operation.reason}", *operation.details()])


def plan(steps: Sequence[PlannedOp]) -> list[Segment | Barrier]:
    """The segments and barriers of a recipe."""
    stages: list[Segment | Barrier] = []
    group: list[PlannedOp] = []
    for step in steps:
        if step.operation.form is not None:
            group.append(step)
            continue
        stages += _segments(group)
        stages.append(Barrier(step))
        group = []
    return stages + list(_segments(group))


def _segments(steps: Sequence[PlannedOp]) -> Iterator[Segment]:
    if steps:
        yield Segment(tuple(_passes(_mirrors_first(steps))))


def _passes(steps: Sequence[PlannedOp]) -> Iterator[Pass]:
    current: Pass | None = None
    for step in steps:
        if current is not None and current.takes(step):
            current = Pass(current.kind, (*current.steps, step))
            continue
        if current is not None:
            yield current
        current = Pass(_KINDS[step.operation.form], (step,))
    if current is not None:
        yield current


def _mirrors_first(steps: Sequence[PlannedOp]) -> list[PlannedOp]:
    ordered: list[PlannedOp] = []
    for step in steps:
        at = len(ordered)
        while _mirror(step) and at and ordered[at - 1].operation.form in ("color", "kernel"):
            at -= 1
        ordered.insert(at, step)
    return ordered


def _mirror(step: PlannedOp) -> bool:
    """Whether a step moves whole pixels within the frame."""
    return step.operation.form == "affine" and hasattr(step.user, "mirror")
