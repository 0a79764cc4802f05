"""FusedSegment: the passes between two barriers, from draws to the last write.

On a CPU the passes in C process one image after another (:mod:`augment.fuse.passes`). Steps without an instruction in
C, and all steps if there is no C compiler, are computed by torch's operators on a few images at a time, so that they
stay in the cache. Either way a step is computed only for the samples that it is drawn for.

On a GPU every pass is computed for the whole batch, the host never synchronizes and no shape depends on the data (so
that a CUDA graph can capture it), and torch.compile fuses what it can, draws included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from augment.draws import Draws, counters, uniforms
from augment.fuse.blur import blur
from augment.fuse.color import Params, batch_first, by_rows, color
from augment.fuse.compiler import Compile, backend_for
from augment.fuse.erase import erase
from augment.fuse.geometry import Map, composed, mirror, warp
from augment.fuse.planner import Pass, PlannedOp, Segment
from augment.fuse.program import Finish, run_in_c, shape_after, shape_after_all, to_unit
from augment.kornia_ops import FusedKorniaOp

CACHED = 3 * 96 * 96
"""Floats per image from which a CPU processes images one by one. Measured on one core with 1 MiB of L2, strong chain,
one by one against all together: 99 and 15 ms for 128 images at 32 pixels, 125 and 39 ms at 64, 133 and 144 ms for 32
images at 224."""


class FusedSegment:
    """One segment of a plan as a callable.

    Args:
        segment: the passes.
        compile: whether they are compiled; see :func:`augment.fuse.compiler.backend_for`.
    """

    def __init__(self, segment: Segment, compile: Compile):
        self.segment, self.compile = segment, compile
        self.steps = segment.steps
        self.kornia_steps = [step for step in self.steps if isinstance(step.user, FusedKorniaOp)]
        self.counts = [step.user.uniforms + 1 for step in self.kornia_steps]
        self._compiled: Callable[..., Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # compiled functions cannot be copied

    def __call__(self, images: Tensor, source: Callable[[PlannedOp], Draws], finish: Finish | None) -> Tensor:
        """Run all passes on a batch.

        Args:
            images: [B, C, H, W], uint8 or floats in [0, 1].
            source: ``source(step)`` gives a step's draws, on the images' device.
            finish: clamping, size and normalization; None: neither.

        Returns:
            [B, C, h, w] floats.
        """
        shape, foreign = images.shape, {}
        for step in self.steps:
            if step not in self.kornia_steps:
                foreign[step.index] = step.user.sample(source(step), shape)
            shape = shape_after(step, shape)
        draws = [source(step) for step in self.kornia_steps]
        ids = draws[0].ids if draws else torch.empty(0, dtype=torch.int64, device=images.device)
        constants = counters(draws, self.counts, images.device)
        backend = backend_for(images.device.type, self.compile)
        if backend == "torch.compile":
            if self._compiled is None:
                self._compiled = torch.compile(self.whole)
            return self._compiled(images, ids, constants, foreign, finish)
        if not by_rows(images):
            return self.whole(images, ids, constants, foreign, finish)
        params = self.parameters(images.shape, ids, constants, foreign)
        if backend == "torch" or _needs_gradient(images, foreign):
            return self.by_parts(self.segment.passes, images, params, finish)
        stretches = self.stretches()
        for n, (in_c, passes) in enumerate(stretches):
            its_finish = finish if n == len(stretches) - 1 else None
            images = (run_in_c if in_c else self.by_parts)(passes, images, params, its_finish)
        return images

    def stretches(self) -> list[tuple[bool, list[Pass]]]:
        """Passes computed together on a CPU, and whether in C. A color pass is split into its steps."""
        parts = [part for pass_ in self.segment.passes for part in pass_.parts]
        return [(in_c, list(some)) for in_c, some in groupby(parts, lambda part: part.in_c)]

    def whole(
        self,
        images: Tensor,
        ids: Tensor,
        constants: tuple[Tensor, ...],
        foreign: dict[int, Params],
        finish: Finish | None,
    ) -> Tensor:
        """Run all passes on the whole batch, without synchronizing with the device.

        Args:
            images: [B, C, H, W].
            ids: [B] int64.
            constants: from :func:`augment.draws.counters`.
            foreign: parameters drawn by users' operations, by their index in the recipe.
            finish: clamping, size and normalization; None: neither.

        Returns:
            [B, C, h, w] floats.
        """
        params = self.parameters(images.shape, ids, constants, foreign)
        maps = _maps(self.segment.passes, images.shape, params)
        return _by_torch(self.segment.passes, images, params, maps, finish)

    def parameters(
        self, shape: torch.Size, ids: Tensor, constants: tuple[Tensor, ...], foreign: dict[int, Params]
    ) -> dict[int, Params]:
        """Draw the parameters of every step.

        Args:
            shape: of the images, [B, C, H, W].
            ids: [B] int64.
            constants: from :func:`augment.draws.counters`.
            foreign: parameters drawn by users' operations, by their index in the recipe.

        Returns:
            The parameters of each step, by its index in the recipe.
        """
        params = dict(foreign)
        if self.kornia_steps:
            numbers = dict(zip(self.kornia_steps, uniforms(ids, constants).split(self.counts, 1)))
        for step in self.steps:
            if step.index not in params:
                params[step.index] = step.user.from_uniforms(numbers[step], shape)
            shape = shape_after(step, shape)
        return params

    def by_parts(
        self, passes: Sequence[Pass], images: Tensor, params: dict[int, Params], finish: Finish | None
    ) -> Tensor:
        """Run the passes on a few images at a time, so that they stay in the processor's cache.

        Args:
            passes: in order.
            images: [B, C, H, W].
            params: the parameters of each step, by its index in the recipe.
            finish: clamping, size and normalization; None: neither.

        Returns:
            [B, C, h, w] floats.
        """
        batch = len(images)
        shape = images.shape
        for pass_ in passes:
            shape = shape_after_all(pass_, shape)
        rows = 1 if shape[1:].numel() >= CACHED else batch
        maps = _maps(passes, images.shape, params)
        if rows >= batch:
            return _by_torch(passes, images, params, maps, finish)
        result: Tensor | None = None
        parts = _split(params, batch, rows)
        for n, (image, its_params, its_maps) in enumerate(
            zip(images.split(rows), parts, _split_maps(maps, rows, len(parts)))
        ):
            part = _by_torch(passes, image, its_params, its_maps, finish)
            if result is None:
                result = part.new_empty(batch, *part.shape[1:])
            result[n * rows : (n + 1) * rows] = part
        assert result is not None
        return result


def _by_torch(
    passes: Sequence[Pass],
    images: Tensor,
    params: dict[int, Params],
    maps: Sequence[Map | None],
    finish: Finish | None,
) -> Tensor:
    """Run passes on images, uint8 or floats, by torch's operators."""
    x = to_unit(images)
    for pass_, back in zip(passes, maps):
        if back is not None:
            x = warp(x, *back, pass_.axis_aligned, *pass_.reading)
            continue
        for step in pass_.steps:
            x = _ALONE[str(step.operation.form)](step.user, x, params[step.index])
    return x if finish is None else finish(x)


_ALONE: dict[str, Callable[[Any, Tensor, Params], Tensor]] = {
    "affine": mirror,
    "color": color,
    "erase": erase,
    "kernel": blur,
}


def _maps(passes: Sequence[Pass], shape: torch.Size, params: dict[int, Params]) -> list[Map | None]:
    """The composed map of every pass that resamples (:func:`augment.fuse.geometry.composed`), None for the others."""
    maps: list[Map | None] = []
    for pass_ in passes:
        resamples = pass_.kind == "geometry" and not pass_.mirrors
        maps.append(composed([(step.user, params[step.index]) for step in pass_.steps], shape) if resamples else None)
        shape = shape_after_all(pass_, shape)
    return maps


def _needs_gradient(images: Tensor, foreign: dict[int, Params]) -> bool:
    """Whether a gradient is needed through the images or a user's parameters; only torch's operators compute it."""
    values = [images, *(value for params in foreign.values() for value in params.values())]
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in values)


def _split(params: dict[int, Params], batch: int, rows: int) -> Sequence[dict[int, Params]]:
    """Parameters of a batch as those of parts of ``rows`` samples."""
    parts: list[dict[int, Params]] = [{index: {} for index in params} for _ in range(0, batch, rows)]
    for index, named in params.items():
        for name, value in named.items():
            pieces = value.split(rows) if batch_first(value, batch) else [value] * len(parts)
            for part, piece in zip(parts, pieces):
                part[index][name] = piece
    return parts


def _split_maps(maps: Sequence[Map | None], rows: int, count: int) -> list[tuple[Map | None, ...]]:
    """Maps of a batch as those of ``count`` parts of ``rows`` samples."""
    split: list[list[Map | None]] = []
    for pass_ in maps:
        if pass_ is None:
            split.append([None] * count)
            continue
        back, size, frames = pass_
        parts: list[Map | None] = [(part, size, []) for part in back.split(rows)]
        for frame, limits in frames:
            for part, piece in zip(parts, frame.split(rows)):
                assert part is not None
                part[2].append((piece, limits))
        split.append(parts)
    return list(zip(*split))
