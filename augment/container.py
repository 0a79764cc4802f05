"""Container: an operation that applies other operations, each to the samples that draw it.

In YAML ``transforms`` is a recipe of its own, which may hold containers again::

    - type: OneOf
      transforms:
        - {type: RandomGaussianBlur, kernel_size: [5, 5], sigma: [0.1, 2.0], p: 1.0}
        - {type: Sequential, transforms: [RandomEqualize, RandomHorizontalFlip]}

In Python they are objects: ``OneOf([K.RandomGrayscale(p=1.0), v2.GaussianBlur(3)])``.

The choice is drawn by sample like any other number. A container is geometric if something in it moves pixels; under the
policy ``shared_geometry`` both views then make the same choice, and what is inside shares its draws or not as it would
outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.operation import Operation
from augment.recipe import built
from augment.steps import Steps

Run = Callable[[int, Tensor, Tensor | None], Tensor]
"""``run(member, images, rows)``: a member's result for images that are these rows of the batch (None: all of it)."""


class Container(Operation, ABC):
    """The base of containers: members, of which each sample draws some.

    Args:
        members: lists of operations; the operations of a member are always applied together.

    Raises:
        OperationError: an object among them is no operation.
    """

    def __init__(self, members: Sequence[Sequence[Any]]):
        super().__init__()
        self.name = type(self).__name__
        self.members = nn.ModuleList(Steps([built(item) for item in member]) for member in members)
        self.geometric = any(leaf.geometric for leaf in self.leaves())

    @property
    def key(self) -> str:
        # A recipe's geometric part has only the containers that move pixels: those are counted by themselves.
        return f"{self.name} of geometry" if self.geometric else self.name

    @abstractmethod
    def chosen(self, draws: Draws) -> Tensor:
        """[B, members] bool: which members each sample draws."""

    @property
    @abstractmethod
    def reason(self) -> str:  # type: ignore[override]
        """What it does, for a chain's plan."""

    def configure(self, engine: Any, compile: Any) -> None:
        members: list[Steps] = list(self.members)  # type: ignore[arg-type]
        self.members = nn.ModuleList(Steps([s.operation for s in member.steps], engine, compile) for member in members)

    def leaves(self) -> Iterator[Operation]:
        for member in self.members:
            for _, leaf in member.leaves:  # type: ignore[union-attr]
                yield leaf

    def details(self) -> list[str]:
        lines: list[str] = []
        for member in self.members:
            inside = member.plan() or ["nothing"]  # type: ignore[operator]
            lines += [
                f"  {'-' if first else ' '} {line}" for first, line in zip([True, *[False] * len(inside)], inside)
            ]
        return lines

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        return self.run_with(images, draws, draws)

    def run_with(self, images: Tensor, draws: Draws, geometry: Draws) -> Tensor:
        """Apply the members with draws of their own for geometry.

        Args:
            images: [N, C, H, W].
            draws: of everything else.
            geometry: of the geometry, which may be those of another view.

        Returns:
            [N, C, H, W].
        """
        draws, geometry = draws.to(images.device), geometry.to(images.device)

        def run(member: int, x: Tensor, rows: Tensor | None) -> Tensor:
            own, moved = draws.op(f"member {member}"), geometry.op(f"member {member}")
            if rows is not None:
                own, moved = own.of(own.ids[rows]), moved.of(moved.ids[rows])
            return self.members[member](x, own, moved)

        return self.work(images, self.chosen(geometry if self.geometric else draws), run)

    def work(self, images: Tensor, chosen: Tensor, run: Run) -> Tensor:
        """Apply the members in order, each to the samples that drew it.

        On a CPU only those are computed. Elsewhere all samples are computed and the drawn ones selected, because
        gathering them would synchronize with the device.

        Args:
            images: [B, C, H, W] floats.
            chosen: [B, members] bool.
            run: see :data:`Run`.

        Returns:
            The changed images, of the same size.
        """
        x = images
        for n in range(len(self.members)):
            drawn = chosen[:, n]
            if not gathers(images):
                x = torch.where(by_sample(drawn), self.same_size(run(n, x, None), x, n), x)
                continue
            rows = drawn.nonzero().squeeze(1)
            if len(rows):
                made = self.same_size(run(n, x[rows], rows), x, n)
                x = made if len(rows) == len(x) else x.index_copy(0, rows, made)
        return x

    def same_size(self, made: Tensor, images: Tensor, member: int) -> Tensor:
        """Refuse a member that changes the size, where some samples do not draw it.

        Args:
            made: the member's result.
            images: what it was made of.
            member: its number.

        Returns:
            ``made``.
        """
        if made.shape[1:] != images.shape[1:]:
            shapes = " to ".join(f"{list(x.shape[1:])}" for x in (images, made))
            raise ValueError(
                f"{self.name}: {self.member_name(member)} changes images from {shapes}, but samples that do not draw "
                "it keep their size; move it out of the container"
            )
        return made

    def member_name(self, member: int) -> str:
        """The names of a member's operations."""
        return " + ".join(step.operation.name for step in self.members[member].steps) or "nothing"  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        return self.reason


def gathers(images: Tensor) -> bool:
    """Whether the drawn samples are gathered, so that only they are computed."""
    return images.device.type == "cpu"


def probability(name: str, p: float) -> float:
    """``p``, checked; ``name`` is the argument's."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError(f"{name} is a probability, 0 … 1, not {p}")
    return float(p)


def listed(transforms: Any) -> list[Any]:
    """``transforms``, checked to be a list that is not empty."""
    if not isinstance(transforms, list | tuple) or not transforms:
        raise ValueError(f"transforms is a list of operations, at least one, not {transforms!r}")
    return list(transforms)
