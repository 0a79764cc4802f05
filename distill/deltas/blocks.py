"""The modules that structural deltas are attached to: stages and residual blocks, from timm's ``group_matcher``.

timm's models declare which modules form a block (``layer1.0``, ``blocks.3``) and a stage (``layer1``); layer decay uses
the same declaration. In a transformer without stages the blocks are used for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from augment.base import did_you_mean
from distill.deltas.base import DeltaError, DeltaSettings
from distill.deltas.sites import inside, matching, owners_blocks

Level = Literal["blocks", "stages"]


@dataclass(frozen=True)
class BackboneBlock:
    """A module of the backbone, with the shape of its output for one image."""

    name: str
    shape: tuple[int, ...]
    """Without the batch axis: [C, H, W], [H, W, C] or [tokens, C]."""
    axis: int
    """Axis of the channels in a batch: 1 for [B, C, H, W], -1 for [B, H, W, C] and tokens."""

    @property
    def channels(self) -> int:
        return self.shape[0] if self.axis == 1 else self.shape[-1]

    @property
    def is_map(self) -> bool:
        return len(self.shape) == 3


def block_names(model: nn.Module, level: Level) -> list[str]:
    """Names of the residual blocks, or of the stages, from input to output; empty if the model declares none."""
    matcher: Any = getattr(model, "group_matcher", None)
    declared = matcher(coarse=level == "stages").get("blocks") if matcher else None
    if declared is None:
        return []
    # Pairs (pattern, order); modules with a fixed order are norms and downsamplings between the blocks.
    pairs = [(declared, None)] if isinstance(declared, str) else declared
    patterns = [pattern for pattern, order in pairs if order is None]
    names = []
    for name, module in model.named_modules():
        if any(re.fullmatch(pattern, name) for pattern in patterns) and any(True for _ in module.children()):
            inner = getattr(module, "blocks", None) if level == "blocks" else None
            names += [f"{name}.blocks.{child}" for child, _ in inner.named_children()] if inner is not None else [name]
    return names


def select_blocks(model: nn.Module, settings: DeltaSettings, level: Level) -> list[BackboneBlock]:
    """The blocks that ``settings.sites`` matches, in the model's order.

    A pattern is matched with the names of ``level`` first, then with those of the other level; ``*`` is all of
    ``level``. Blocks that :func:`distill.deltas.sites.owners_blocks` names, or that contain or are in one of them, are
    left out.

    Args:
        model: a timm model.
        settings: of a structural delta: ``sites`` and ``exclude``.
        level: "blocks" or "stages".

    Returns:
        The blocks, with the shapes of their outputs.

    Raises:
        DeltaError: the model declares no blocks, a pattern matches none, or a block's output is not one tensor with
            channels.
    """
    if settings.kinds is not None:
        raise DeltaError(f"{settings.type}: kinds select layers, and it is attached to blocks; leave kinds out")
    own, other = block_names(model, level), block_names(model, "stages" if level == "blocks" else "blocks")
    if not own:
        raise DeltaError(
            f"{settings.type}: {type(model).__name__} declares no blocks (timm's group_matcher); use a weight delta, "
            "or 'output', which needs none"
        )
    chosen: dict[str, None] = {}
    for pattern in settings.sites:
        matches = matching(pattern, own) or matching(pattern, other)
        if not matches:
            raise DeltaError(f"{settings.type}: pattern {pattern!r} matches no block{_near(pattern, [*own, *other])}")
        chosen |= dict.fromkeys(matches)
    for pattern in settings.exclude:
        if not matching(pattern, [*own, *other]):
            raise DeltaError(
                f"{settings.type}: exclude pattern {pattern!r} matches no block{_near(pattern, [*own, *other])}"
            )
    excluded = {name for pattern in settings.exclude for name in matching(pattern, [*own, *other])}
    names = [name for name in chosen if name not in excluded]
    if not names:
        raise DeltaError(f"{settings.type}: all blocks that its sites match are excluded")
    owners = owners_blocks(model)
    ends = [name for name in names if not inside(name, owners) and not any(inside(other, [name]) for other in owners)]
    if not ends:
        raise DeltaError(
            f"{settings.type}: its sites match blocks of the emulator's middle alone, such as {names[0]!r}, which its "
            "owner replaces; name blocks of the ends"
        )
    names = ends
    outputs = probe(model, names)
    for name in names:
        if not isinstance(outputs.get(name), Tensor) or outputs[name].ndim not in (3, 4):
            raise DeltaError(
                f"{settings.type}: block {name!r} ({type(model.get_submodule(name)).__name__}) does not return one "
                "tensor of tokens or of a map; exclude it, or use a weight delta, or 'output'"
            )
    order = [name for name, _ in model.named_modules() if name in chosen and name in names]
    return [as_block(model, name, outputs[name]) for name in order]


def as_block(model: nn.Module, name: str, output: Tensor) -> BackboneBlock:
    """The description of a block from its output.

    Args:
        model: that the block is in; its ``output_fmt`` decides where a map has its channels.
        name: of the block.
        output: of the block, for one image: tokens [1, N, C], or a map [1, C, H, W] or [1, H, W, C].

    Returns:
        Name, shape without the batch axis, and axis of the channels.
    """
    channels_last = output.ndim == 3 or getattr(model, "output_fmt", "NCHW") == "NHWC"
    return BackboneBlock(name, tuple(output.shape[1:]), -1 if channels_last else 1)


def probe(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Name → output of the module for one image of zeros, in eval mode; without modules that are not called."""
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.update({name: output})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.no_grad(), eval_mode(model):
            model(empty_image(model))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def empty_image(model: nn.Module) -> Tensor:
    """Zeros [1, C, H, W] of the network's input size."""
    patches = getattr(model, "patch_embed", None)
    config: Any = getattr(model, "pretrained_cfg", None)
    size = getattr(patches, "img_size", None) or (config["input_size"][1:] if config else None)
    if size is None:
        raise DeltaError(f"{type(model).__name__} has no pretrained_cfg with its input size, so it is no timm model")
    like = next(model.parameters())
    channels = config["input_size"][0] if config else 3
    return torch.zeros(1, channels, *size, device=like.device, dtype=like.dtype)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode; on exit, modules that were in training mode are so again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _near(pattern: str, names: Sequence[str]) -> str:
    hint = did_you_mean(pattern, names)
    return hint if hint.startswith("; did") else f"; blocks are named like {', '.join(map(repr, names[:5]))}"
