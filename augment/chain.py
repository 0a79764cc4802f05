"""Chain: the operations of one view, in few passes, then the network's input size and normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from augment.draws import Draws
from augment.fuse.compiler import Compile
from augment.fuse.planner import PlannedOp
from augment.fuse.program import Finish, normalized, resized, to_unit
from augment.recipe import Op, built
from augment.steps import Engine, ImageError, Steps, alone
from augment.views import InputSpec

__all__ = ["Chain", "ImageError", "eval_view", "normalized", "resized", "to_unit"]

MUCH = 1 / 3
"""The fraction of values outside [0, 1] that noise does not reach, but a normalization does."""


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

    Draws are keyed by an operation's name, not by its position: adding a color operation to a chain does not change its
    crop. See :class:`augment.steps.Steps`.
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
        self.size = size
        self.passes = Steps([built(item, size) for item in recipe], engine, compile)
        self.clamps = bounded and not self.passes.keeps_range

    @property
    def steps(self) -> list[PlannedOp]:
        """The operations in order, each with the key of its draws."""
        return self.passes.steps

    def extra_repr(self) -> str:
        return f"size={self.size[0]}x{self.size[1]}, engine={self.passes.engine}, compile={self.passes._compile}"

    def plan(self) -> str:
        """The passes, a line each: which operations are computed together, and which alone and why."""
        lines = [*self.passes.plan(), f"{'write':9}{self.size[0]} x {self.size[1]}, normalized"]
        if where := self.passes.on_a_cpu():
            lines.append(f"{'on a CPU':9}{where}")
        return "\n".join(lines)

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
        return self.passes(images, draws, geometry, finish)

    def diagnose(self, images: Tensor, draws: Draws, geometry: Draws | None = None) -> None:
        """Apply the operations one by one to find one whose result has the wrong shape or type, or is not finite.

        Args:
            images: [B, C, H, W], uint8, or floats in [0, 1].
            draws: as for :meth:`forward`.
            geometry: as for :meth:`forward`.

        Raises:
            ImageError: names the operation and the rows of the samples in the batch.
        """
        x = to_unit(images)
        _check_finite(x, "the images given to the chain")
        draws = draws.to(x.device)
        for step in self.steps:
            x = to_unit(alone(step, x, draws, draws if geometry is None else geometry.to(x.device)))
            _check_finite(x, f"the results of {step.operation.name} (operation {step.index + 1})")

    def clipped(self, images: Tensor, draws: Draws, geometry: Draws | None = None) -> tuple[float, str]:
        """How many values leave [0, 1], by more than 1/255, before the chain clamps them.

        Args:
            images: [B, C, H, W], uint8, or floats in [0, 1].
            draws: as for :meth:`forward`.
            geometry: as for :meth:`forward`.

        Returns:
            The fraction of the values, and the name of the operation after which it is first above a third.
        """
        x, share, culprit = to_unit(images), 0.0, ""
        draws = draws.to(x.device)
        for step in self.steps:
            x = to_unit(alone(step, x, draws, draws if geometry is None else geometry.to(x.device)))
            share = float(((x < -1 / 255) | (x > 1 + 1 / 255)).float().mean())
            culprit = culprit or (step.operation.name if share > MUCH else "")
        return share, culprit

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
        for step, leaf in self.passes.leaves:
            wanted = getattr(getattr(leaf, "user", None), "channels", None)
            if wanted is not None and wanted != channels:
                raise ImageError(
                    f"{leaf.name} (operation {step.index + 1}) needs {wanted} channels, but every sample of "
                    f"the batch has {channels}"
                )


def _check_finite(images: Tensor, what: str) -> None:
    # A sum is one pass and no memory; it is finite unless something in it is not.
    if not bool(images.sum().isfinite()):
        bad = (~images.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ImageError(f"{what} are not finite in sample {', '.join(map(str, bad))} of the batch")


@torch.no_grad()
def eval_view(images: Tensor, spec: InputSpec) -> Tensor:
    """A network's input in validation and test: resized and normalized, nothing drawn.

    Args:
        images: [B, 3, H, W], uint8 or floats in [0, 1].
    """
    with torch.autocast(images.device.type, enabled=False):
        return normalized(resized(to_unit(images), spec.size), spec)
