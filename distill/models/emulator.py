"""Emulators: a network whose middle has lost blocks, so that its two ends can be tuned without the whole network.

The blocks of a network are front, middle and back. Of the n blocks of the middle that can be dropped, m are kept:
number ``round(i (n − 1) / (m − 1))`` for i < m, half to even; so 6 of 12 are 0 2 4 7 9 11. The others become the
identity, in the same places, so that all remaining layers keep their names. A block can be dropped if its input and
its output have the same shape. Stem and final norm belong to the ends.

Paper: Xiao et al., Offsite-Tuning: Transfer Learning without Full Model, arXiv 2302.04870.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from augment.base import did_you_mean
from distill.deltas.blocks import block_names, empty_image, eval_mode
from distill.deltas.sites import inside, matching, owners_blocks
from distill.models.weights import NetworkError

ARCHITECTURE = "emulator"
"""timm's entry point for emulators, see :mod:`distill.models.emulator_entry`."""


class DroppedBlock(nn.Identity):
    """In the place of a dropped block: returns its input, whatever else the network passes to its blocks."""

    def forward(self, input: Tensor, *unused: Any, **also_unused: Any) -> Tensor:
        """The input.

        Args:
            input: of the block.
            unused: accepted as the blocks of some transformers accept them (masks, position embeddings); ignored.
            also_unused: likewise, by keyword.

        Returns:
            The same tensor.
        """
        return input


@dataclass(frozen=True)
class EmulatorPlan:
    """The blocks of a network in an emulator, by name, each list in the network's order."""

    front: tuple[str, ...]
    middle: tuple[str, ...]
    back: tuple[str, ...]
    dropped: tuple[str, ...]
    """Of the middle."""
    owners: tuple[str, ...]
    """The modules of the middle: its stages, with what is between their blocks, and single blocks."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The blocks of the middle that the emulator has."""
        return tuple(name for name in self.middle if name not in self.dropped)

    def __str__(self) -> str:
        count = len(self.front) + len(self.middle) + len(self.back)
        return (
            f"{count - len(self.dropped)} of {count} blocks: of the middle {len(self.kept)} of {len(self.middle)} "
            f"({', '.join(self.kept)}), without {', '.join(self.dropped)}"
        )


def evenly(n: int, m: int) -> list[int]:
    """Numbers of m blocks of n: ``round(i (n − 1) / (m − 1))``, i < m, half to even. The first and the last are in it.

    Raises:
        NetworkError: m is less than 2, for which it is not defined, or not less than n, so that nothing is dropped.
    """
    if m < 2:
        raise NetworkError(f"keep: {m} of {n} blocks would be kept; the first and the last always are, so 2 or more")
    if m >= n:
        raise NetworkError(f"keep: {m} of {n} blocks would be kept, so there is nothing to drop")
    return [round(i * (n - 1) / (m - 1)) for i in range(m)]


def plan_emulator(model: nn.Module, front: Sequence[str], back: Sequence[str], keep: float | int) -> EmulatorPlan:
    """Choose the blocks to drop.

    Args:
        model: a timm model without deltas.
        front: names or patterns of its first blocks, or of stages.
        back: of its last blocks, or of stages.
        keep: of the blocks of the middle that can be dropped, the fraction to keep (a float), or how many (an int).

    Returns:
        The plan; the model is not changed.

    Raises:
        NetworkError: a pattern names no block, front or back are not the first or last blocks, there is no middle, or
            nothing can be dropped; the text names the key.
    """
    if model.pretrained_cfg["architecture"] == ARCHITECTURE:  # type: ignore[index]
        raise NetworkError("the network is an emulator already")
    names = block_names(model, "blocks")
    if not names:
        raise NetworkError(f"{type(model).__name__} declares no blocks (timm's group_matcher), so none can be dropped")
    first = _named(model, names, front, "front")
    last = _named(model, names, back, "back")
    if both := [name for name in first if name in last]:
        raise NetworkError(f"front and back both have {both[0]!r}")
    _check_place("front", first, names[: len(first)], "first")
    _check_place("back", last, names[len(names) - len(last) :], "last")
    middle = names[len(first) : len(names) - len(last)]
    if not middle:
        raise NetworkError("front and back are all blocks of the network, so there is no middle to drop blocks from")
    equal = _shape_preserving(model, middle)
    count = round(keep * len(equal)) if isinstance(keep, float) else keep
    if len(equal) < 3:
        which = f"{', '.join(equal)} of the middle" if equal else "no block of the middle"
        raise NetworkError(
            f"nothing to drop: {which} {'have' if len(equal) > 1 else 'has'} an output of the shape of the input, and "
            "the first and the last of such blocks are kept; make front and back smaller"
        )
    kept = {equal[number] for number in evenly(len(equal), count)}
    dropped = tuple(name for name in equal if name not in kept)
    ends = [*first, *last]
    stages = [s for s in block_names(model, "stages") if any(inside(name, [s]) for name in middle)]
    whole = [stage for stage in stages if not any(inside(name, [stage]) for name in ends)]
    owners = (*whole, *(name for name in middle if not inside(name, whole)))
    return EmulatorPlan(tuple(first), tuple(middle), tuple(last), dropped, owners)


def drop_blocks(model: nn.Module, dropped: Sequence[str]) -> nn.Module:
    """Replace blocks by the identity, in place; returns the model."""
    for name in dropped:
        model.set_submodule(name, DroppedBlock())
    return model


def keep_owners_blocks(model: nn.Module, plan: EmulatorPlan) -> nn.Module:
    """Leave the middle to the owner: no delta can be attached there. Returns the model, changed in place."""
    model.owners_blocks = plan.owners  # type: ignore[assignment]
    return model


def emulator_arguments(model: nn.Module) -> dict[str, Any] | None:
    """Arguments of timm's entry point for a model with dropped blocks; None without, or if timm made it with them."""
    if model.pretrained_cfg["architecture"] == ARCHITECTURE:  # type: ignore[index]
        return None
    dropped = [name for name, module in model.named_modules() if isinstance(module, DroppedBlock)]
    return {"dropped": dropped, "middle": list(owners_blocks(model))} if dropped else None


def _named(model: nn.Module, names: Sequence[str], patterns: Sequence[str], key: str) -> list[str]:
    """The blocks that patterns match, or that are in stages that they match, in the model's order."""
    stages = block_names(model, "stages")
    chosen: set[str] = set()
    for pattern in patterns:
        if not (matches := matching(pattern, names) or matching(pattern, stages)):
            known = [*stages, *(name for name in names if name not in stages)]
            hint = did_you_mean(pattern, known)
            hint = hint if hint.startswith("; did") else f"; blocks are named like {', '.join(known[:5])}"
            raise NetworkError(f"{key}: {pattern!r} names no block{hint}")
        chosen |= {name for name in names if inside(name, matches)}
    return [name for name in names if name in chosen]


def _check_place(key: str, given: Sequence[str], expected: Sequence[str], which: str) -> None:
    if list(given) != list(expected):
        missing = next(name for name in expected if name not in given)
        raise NetworkError(f"{key} must be the {which} blocks of the network, and leaves out {missing!r}")


def _shape_preserving(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules whose output for one image has the shape of their input."""
    shapes: dict[str, tuple[Any, Any]] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, output: shapes.update({name: (_shape(inputs[0]), _shape(output))})

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        with torch.no_grad(), eval_mode(model):
            model(empty_image(model))
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in names if name in shapes and shapes[name][0] == shapes[name][1] is not None]


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
