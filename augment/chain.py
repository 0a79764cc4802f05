"""Chain: the operations of one view, in few passes, then the network's input size and normalization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from augment.base import UserError
from augment.draws import Draws
from augment.fuse.compiler import Compile, missing_compiler
from augment.fuse.planner import Barrier, PlannedOp, Segment, plan
from augment.fuse.program import Finish, normalized, resized, to_unit
from augment.fuse.run import FusedSegment
from augment.kornia_ops import FusedKorniaOp
from augment.operation import SampledOp
from augment.recipe import Op, built
from augment.views import InputSpec

__all__ = ["Chain", "ImageError", "eval_view", "normalized", "resized", "to_unit"]

Engine = Literal["fused", "kornia"]


class ImageError(UserError, ValueError):
    """Images that an operation cannot work on; the text names the operation, the samples and what was expected."""


class Chain(nn.Module):
    """An ordered list of operations for one input size.

    Args:
        recipe: the operations by name, or as objects of any shape that a name can have.
        size: (height, width) of the result, whatever the operations do.
        engine: "fused" plans operations together (see :meth:`plan`); "kornia" does one after another, kornia's by
            kornia's own code with the same parameters.
        compile: whether the passes are compiled: by torch.compile on a GPU, by a C compiler on a CPU. "auto": if there
            is a compiler; True: the same, with a warning if there is none.
        bounded: whether the result is clamped to [0, 1]; False for spectrograms, whose values have no bounds.

    Draws are keyed by an operation's name and how many of that name came before it, not by its position: adding a color
    operation to a chain does not change its crop.
    """

    def __init__(
        self,
        recipe: Sequence[Op | Callable[..., Any]],
        size: tuple[int, int],
        engine: Engine = "fused",
        compile: Compile = "auto",
        bounded: bool = True,
    ):
        super().__init__()
        self.size, self.engine, self._compile = size, engine, compile
        named = [built(item, size) for item in recipe]
        self.operations = nn.ModuleList(operation for _, operation in named)
        seen: Counter[str] = Counter()
        self.keys: list[str] = []
        for name, _ in named:
            self.keys.append(f"{name}#{seen[name]}")
            seen[name] += 1
        self.steps = [PlannedOp(n, key, operation) for n, (key, (_, operation)) in enumerate(zip(self.keys, named))]
        self._stages = plan(self.steps)
        self._segments = {
            n: FusedSegment(stage, compile) for n, stage in enumerate(self._stages) if isinstance(stage, Segment)
        }
        users = [getattr(step.operation, "user", None) for step in self.steps]
        # Noise, bicubic reading and users' operations may leave [0, 1].
        self.clamps = bounded and not all(isinstance(user, FusedKorniaOp) and user.keeps_range for user in users)

    def extra_repr(self) -> str:
        return f"size={self.size[0]}x{self.size[1]}, engine={self.engine}, compile={self._compile}"

    def plan(self) -> str:
        """The passes, a line each: which operations are computed together, and which alone and why."""
        lines = [str(stage) for stage in self._stages]
        lines.append(f"{'write':9}{self.size[0]} x {self.size[1]}, normalized")
        if self._segments:
            lines.append(f"{'on a CPU':9}{self._on_a_cpu()}")
        return "\n".join(lines)

    def _on_a_cpu(self) -> str:
        if self.engine == "kornia" or not self._compile:
            return "by torch's operators"
        if missing := missing_compiler("cpu"):
            return f"by torch's operators: {missing}"
        stretches = [stretch for segment in self._segments.values() for stretch in segment.stretches()]
        by_torch = [part for in_c, parts in stretches if not in_c for part in parts]
        names = " + ".join(step.operation.name for part in by_torch for step in part.steps)
        return f"in C; by torch's operators {names}" if names else "in C"

    def forward(
        self,
        images: Tensor,
        draws: Draws,
        geometry: Draws | None = None,
        spec: InputSpec | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Images [B, C, H, W] → floats [B, C, *size] in [0, 1], or normalized.

        Args:
            images: uint8, or floats in [0, 1].
            draws: of this view, for these samples.
            geometry: draws for the operations that move pixels, if another view shares them; None: ``draws``.
            spec: whose mean and std the result is normalized with; None leaves it in [0, 1].
            dtype: of the result.

        Returns:
            [B, C, *size] of ``dtype``, on the images' device.

        Raises:
            ImageError: images of the wrong kind or with too few or too many channels, or, on a CPU, not finite. Floats
                on a GPU are not checked, because that takes another pass and a synchronization: see :meth:`diagnose`.
        """
        self._check(images)
        finish = Finish((self.size[0], self.size[1]), self.clamps, spec, dtype)
        if not len(images):
            return finish(to_unit(images).new_empty(0, images.shape[1], *self.size))
        draws = draws.to(images.device)
        geometry = draws if geometry is None else geometry.to(images.device)

        def source(step: PlannedOp) -> Draws:
            return (geometry if step.operation.geometric else draws).op(step.key)

        if self.engine == "kornia":
            x = to_unit(images)
            for step in self.steps:
                x = _by_kornia(step, x, source(step))
            return finish(x)
        x = images
        last = len(self._stages) - 1
        for n, stage in enumerate(self._stages):
            if isinstance(stage, Barrier):
                x = stage.step.operation(to_unit(x), source(stage.step))
            else:
                x = self._segments[n](x, source, finish if n == last else None)
        return x if self._stages and isinstance(self._stages[-1], Segment) else finish(to_unit(x))

    def diagnose(self, images: Tensor, draws: Draws, geometry: Draws | None = None) -> None:
        """Apply the operations one by one to find the one whose result is not finite.

        Args:
            images: [B, C, H, W], uint8, or floats in [0, 1].
            draws: as for :meth:`forward`.
            geometry: as for :meth:`forward`.

        Raises:
            ImageError: names the operation and the rows of the samples in the batch.
        """
        x = to_unit(images)
        _check_finite(x, "the images given to the chain")
        for step in self.steps:
            source = geometry if geometry is not None and step.operation.geometric else draws
            x = step.operation(x, source.to(x.device).op(step.key))
            _check_finite(x, f"the results of {step.operation.name} (operation {step.index + 1})")

    def _check(self, images: Tensor) -> None:
        first = f"{self.steps[0].operation.name}, the first operation, needs" if self.steps else "a chain needs"
        if images.ndim != 4:
            raise ImageError(f"{first} images [B, C, H, W], not {list(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(
                f"{first} uint8, or floats in [0, 1], not {images.dtype}; every sample of the batch has that"
            )
        self.check_channels(images.shape[1])
        if images.is_floating_point() and images.device.type == "cpu":
            _check_finite(images, f"{first} finite numbers; the images given")

    def check_channels(self, channels: int) -> None:
        """Raise ``ImageError`` if an operation needs another number of channels; the text names the operation."""
        for step in self.steps:
            wanted = getattr(getattr(step.operation, "user", None), "channels", None)
            if wanted is not None and wanted != channels:
                raise ImageError(
                    f"{step.operation.name} (operation {step.index + 1}) needs {wanted} channels, but every sample of "
                    f"the batch has {channels}"
                )


def _check_finite(images: Tensor, what: str) -> None:
    # A sum is one pass and no memory; it is finite unless something in it is not.
    if not bool(images.sum().isfinite()):
        bad = (~images.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ImageError(f"{what} are not finite in sample {', '.join(map(str, bad))} of the batch")


def _by_kornia(step: PlannedOp, images: Tensor, draws: Draws) -> Tensor:
    operation = step.operation
    if isinstance(operation, SampledOp) and isinstance(operation.user, FusedKorniaOp):
        return operation.user.by_kornia(images, operation.sample(draws, images.shape))
    return operation(images, draws)


@torch.no_grad()
def eval_view(images: Tensor, spec: InputSpec) -> Tensor:
    """A network's input in validation and test: resized and normalized, nothing drawn.

    Args:
        images: [B, 3, H, W], uint8 or floats in [0, 1].
    """
    with torch.autocast(images.device.type, enabled=False):
        return normalized(resized(to_unit(images), spec.size), spec)
