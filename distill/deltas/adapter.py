"""Adapters: residual bottlenecks after the modules of a frozen network.

    y' = y + s ⊙ W_up act(W_down y)            tokens: W_down [hidden, C], W_up [C, hidden], biases
    y' = y + s ⊙ W_up act(DW(W_down y))        maps: 1×1, depthwise ``kernel`` × ``kernel``, 1×1

s [C] is learned and initialized to 1 (``scale: false`` leaves it out). W_up and its bias are initialized to zero, so
that the adapter is the identity before training; in the papers they are near zero.

Position: in a transformer, after the attention and after the MLP of every block, before the residual additions (and
after timm's LayerScale, which would scale it down); in other networks, after every stage. ``sites`` names blocks or
stages.

Papers: Houlsby et al., arXiv 1902.00751; Chen et al., Conv-Adapter, arXiv 2208.07463; the scale per channel: Steitz and
Roth, Adapters Strike Back (Adapter+), arXiv 2406.06820.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.base import DeltaSettings, StructuralDelta
from distill.deltas.blocks import BackboneBlock, as_block, block_names, probe, select_blocks

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Adapter(StructuralDelta):
    """``y + s ⊙ W_up act(W_down y)`` after attention and MLP, or after stages with a depthwise conv between.

    >>> import timm, torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.adapter import Adapter
    >>> model = timm.create_model("test_resnet", num_classes=3).eval()
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> before = model(x)
    >>> (site,) = attach(model, [Adapter.Settings(hidden=4)], exclude_head="fc")
    >>> sum(p.numel() for p in site.delta.parameters())
    3856
    >>> site.delta.is_identity(), torch.equal(model(x), before)
    (True, True)
    """

    class Settings(DeltaSettings):
        type: Literal["adapter"] = "adapter"
        hidden: int = Field(16, ge=1, description="width of the bottleneck")
        kernel: int = Field(3, ge=1, le=31, description="maps only: window size of the depthwise conv, odd")
        act: Literal["gelu", "relu", "silu"] = Field("gelu", description="activation between the two layers")
        scale: bool = Field(True, description="multiply the adapter's output by a learned factor per channel")

        @field_validator("kernel")
        @classmethod
        def _has_a_center(cls, kernel: int) -> int:
            if kernel % 2 == 0:
                raise ValueError(f"must be odd, is {kernel}")
            return kernel

    settings: Settings

    def __init__(self, settings: Settings, backbone: nn.Module):
        super().__init__(settings, backbone)
        blocks = _adapted_blocks(backbone, settings)
        self.names = [block.name for block in blocks]
        self.adapters = nn.ModuleList(Bottleneck(settings, block) for block in blocks)

    def parts(self) -> dict[str, nn.Module]:
        return dict(zip(self.names, self.adapters, strict=True))

    def attach(self, backbone: nn.Module) -> None:
        for name, adapter in zip(self.names, self.adapters, strict=True):
            backbone.get_submodule(name).register_forward_hook(adapter.adapt)  # type: ignore[arg-type]

    def is_identity(self) -> bool:
        return not any(bool(p.any()) for adapter in self.adapters for p in adapter.up.parameters())  # type: ignore[union-attr]


class Bottleneck(nn.Module):
    """The adapter after one module."""

    def __init__(self, settings: Adapter.Settings, block: BackboneBlock):
        super().__init__()
        channels, hidden, self.axis = block.channels, settings.hidden, block.axis
        self.act = settings.act
        self.down: nn.Module
        self.up: nn.Module
        if self.axis == 1:
            self.down = nn.Conv2d(channels, hidden, 1)
            self.mix: nn.Module = nn.Conv2d(
                hidden, hidden, settings.kernel, padding=settings.kernel // 2, groups=hidden
            )
            self.up = nn.Conv2d(hidden, channels, 1)
        else:
            self.down, self.mix, self.up = nn.Linear(channels, hidden), nn.Identity(), nn.Linear(hidden, channels)
        nn.init.zeros_(self.up.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]
        self.scale = nn.Parameter(torch.ones(channels)) if settings.scale else None

    def extra_repr(self) -> str:
        return f"act={self.act}"

    def adapt(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> Tensor:
        """Apply the adapter to a module's output: a forward hook of the module.

        Args:
            module: the module; not used.
            inputs: its inputs; not used.
            output: its output y, a map [B, C, H, W], or tokens or a map with the channels last.

        Returns:
            y', in the same layout.
        """
        return self(output)

    def forward(self, y: Tensor) -> Tensor:
        added = self.up(_ACTIVATIONS[self.act](self.mix(self.down(y))))
        if self.scale is not None:
            added = added * (self.scale.view(-1, 1, 1) if self.axis == 1 else self.scale)
        return y + added.to(y.dtype)


def _adapted_blocks(backbone: nn.Module, settings: Adapter.Settings) -> list[BackboneBlock]:
    """Modules that get an adapter: attention and MLP of the matched transformer blocks, or the matched modules."""
    blocks = [backbone.get_submodule(name) for name in block_names(backbone, "blocks")]
    matches = select_blocks(backbone, settings, "blocks" if blocks and all(map(_halves, blocks)) else "stages")
    names = [f"{block.name}.{half}" for block in matches for half in _halves(backbone.get_submodule(block.name))]
    outputs = probe(backbone, names)
    adapted = []
    for block in matches:
        halves = [f"{block.name}.{half}" for half in _halves(backbone.get_submodule(block.name))]
        adapted += [as_block(backbone, name, outputs[name]) for name in halves] or [block]
    return adapted


def _halves(block: nn.Module) -> list[str]:
    """Children of a transformer block whose outputs enter its residual additions; empty for other modules."""
    if not hasattr(block, "attn") or not hasattr(block, "mlp"):
        return []
    return ["ls1", "ls2"] if hasattr(block, "ls1") and hasattr(block, "ls2") else ["attn", "mlp"]
