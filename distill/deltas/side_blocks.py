"""The modules of a ladder's side network: thin blocks, and rungs that mix the backbone's outputs into them.

Maps are [B, C, H, W] here, whatever the backbone's layout; tokens are [B, N, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.base import DeltaError
from distill.deltas.blocks import BackboneBlock, block_names

# Submodules of a block that are not on its main path.
_ASIDE = {"downsample", "shortcut", "se", "attn", "attn_se", "attn_last", "conv_skip"}


@dataclass(frozen=True)
class SideLayer:
    """One conv of a side block, and the name of the backbone's layer that it is pruned from, if any."""

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    depthwise: bool = False
    source: str = ""


@dataclass(frozen=True)
class Form:
    """The layers and widths of a side block."""

    width: int
    steps: tuple[SideLayer, ...] = ()
    """Layers of a block of convs; empty for a transformer block."""
    heads: int = 1
    hidden: int = 0
    """Width of a transformer block's MLP."""
    source: str = ""
    """Name of the backbone's transformer block that it is pruned from, if any."""


def free_form(tap: BackboneBlock, reduction: int) -> Form:
    """A form for any backbone: a depthwise 3×3 and two 1×1 convs, or a transformer block with heads of width 32."""
    width = max(1, tap.channels // reduction)
    if tap.is_map:
        steps = (
            SideLayer(width, width, (3, 3), depthwise=True),
            SideLayer(width, 2 * width),
            SideLayer(2 * width, width),
        )
        return Form(width, steps)
    heads = max(1, width // 32)
    return Form(heads * max(1, width // heads), heads=heads, hidden=4 * width)


def pruned_form(backbone: nn.Module, tap: BackboneBlock, reduction: int) -> Form:
    """The form of the backbone's last block up to the tap, ``reduction`` times narrower.

    Args:
        backbone: a timm model.
        tap: a block or stage, whose output is read.
        reduction: width of the block divided by that of its pruned copy.

    Returns:
        The form, with the names of the layers to prune.

    Raises:
        DeltaError: the block's layers are neither a chain of convs nor the attention and MLP of timm's ViT.
    """
    inside = [name for name in block_names(backbone, "blocks") if f"{name}.".startswith(f"{tap.name}.")]
    name = inside[-1] if inside else tap.name
    block: Any = backbone.get_submodule(name)
    refusal = DeltaError(
        f"ladder: no side block can be pruned from {name!r} ({type(block).__name__}) {{}}; set init: random, or name "
        "other stages"
    )
    if not tap.is_map:
        layers: Any = dict(block.named_modules())
        required = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        if not all(isinstance(layers.get(n), nn.Linear) for n in required):
            raise DeltaError(str(refusal).format("without attn.qkv, attn.proj, mlp.fc1 and mlp.fc2"))
        heads, channels = block.attn.num_heads, tap.channels
        if (
            layers["attn.qkv"].out_features != 3 * channels
            or layers["mlp.fc1"].out_features != layers["mlp.fc2"].in_features
        ):
            raise DeltaError(str(refusal).format("whose qkv is not three times its width, or whose MLP is gated"))
        width = heads * max(1, channels // heads // reduction)
        hidden = max(1, layers["mlp.fc1"].out_features // reduction)
        return Form(width, heads=heads, hidden=hidden, source=name)
    chain = [
        (f"{name}.{n}", layer)
        for n, layer in block.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not _ASIDE & set(n.split("."))
    ]
    width = max(1, tap.channels // reduction)
    steps: list[SideLayer] = []
    for number, (source, layer) in enumerate(chain):
        outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * getattr(layer, "groups", 1)
        before = chain[number - 1][1].weight.shape[0] if number else inputs
        if inputs != before:
            raise DeltaError(str(refusal).format(f"at {source!r}: {inputs} inputs after {before} channels"))
        depthwise = getattr(layer, "groups", 1) == inputs == outputs > 1
        last = number == len(chain) - 1
        thin = steps[-1].outputs if steps else width
        out = width if last else thin if depthwise else max(1, outputs // reduction)
        kernel = (layer.weight.shape[2], layer.weight.shape[3]) if layer.weight.ndim == 4 else (1, 1)
        steps.append(SideLayer(thin, out, kernel, depthwise, source))
    if not steps or chain[-1][1].weight.shape[0] != tap.channels:
        raise DeltaError(str(refusal).format(f"whose layers do not end in its {tap.channels} channels"))
    if steps[-1].depthwise and steps[-1].inputs != width:
        raise DeltaError(str(refusal).format("which ends in a depthwise conv"))
    return Form(width, tuple(steps))


class SideConvs(nn.Module):
    """Convs with stride 1, each followed by a normalization over the whole map, GELU between them."""

    def __init__(self, form: Form):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(
                step.inputs,
                step.outputs,
                step.kernel,
                padding=(step.kernel[0] // 2, step.kernel[1] // 2),
                groups=step.inputs if step.depthwise else 1,
                bias=False,
            )
            for step in form.steps
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, step.outputs) for step in form.steps)

    def forward(self, s: Tensor) -> Tensor:
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            s = norm(conv(F.gelu(s) if number else s))
        return s


class SideTransformer(nn.Module):
    """The residual branch of a pre-norm transformer block: what it adds to its input."""

    def __init__(self, form: Form):
        super().__init__()
        self.heads = form.heads
        self.norm1, self.norm2 = nn.LayerNorm(form.width), nn.LayerNorm(form.width)
        self.qkv, self.proj = nn.Linear(form.width, 3 * form.width), nn.Linear(form.width, form.width)
        self.fc1, self.fc2 = nn.Linear(form.width, form.hidden), nn.Linear(form.hidden, form.width)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"

    def forward(self, s: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(s)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        added = self.proj(attended)
        return added + self.fc2(F.gelu(self.fc1(self.norm2(s + added))))


class Rung(nn.Module):
    """One step of the side network: mixes the backbone's output at a tap into the side stream and applies a side block.

    Args:
        tap: the block of the backbone whose output it reads.
        form: of the side block.
        before: width of the side stream before this rung; None for the first rung.
        drop_path: probability that a sample skips the block in training.
    """

    def __init__(self, tap: BackboneBlock, form: Form, before: int | None, drop_path: float):
        super().__init__()
        self.form, self.to_front, self.drop_path = form, tap.is_map and tap.axis == -1, drop_path
        self.down = pointwise(tap.channels, form.width, tap.is_map)
        self.across = pointwise(before, form.width, tap.is_map) if before not in (None, form.width) else nn.Identity()  # type: ignore[arg-type]
        self.gate = nn.Parameter(torch.zeros(())) if before is not None else None
        self.block = SideConvs(form) if form.steps else SideTransformer(form)
        self.tap_output: Tensor | None = None
        """The backbone's output at the tap, kept until ``forward`` reads it."""

    def keep(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        """Keep the tap's output: a forward hook of the tap.

        Args:
            module: the tap; not used.
            inputs: its inputs; not used.
            output: its output, a map or tokens in the backbone's layout; kept without gradient.
        """
        self.tap_output = output.detach()

    def extra_repr(self) -> str:
        return f"width={self.form.width}, drop_path={self.drop_path}"

    def forward(self, s: Tensor | None) -> Tensor:
        assert self.tap_output is not None
        h = self.tap_output.movedim(-1, 1) if self.to_front else self.tap_output
        self.tap_output = None
        mixed = self.down(h)
        if s is not None and self.gate is not None:
            s = self.across(s)
            if s.ndim == 4 and s.shape[-2:] != mixed.shape[-2:]:
                s = F.adaptive_avg_pool2d(s, mixed.shape[-2:])
            open_ = gate(self.gate)
            mixed = open_ * s + (1 - open_) * mixed
        added = self.block(mixed)
        if self.drop_path and self.training:
            kept = torch.rand(len(added), *[1] * (added.ndim - 1), device=added.device) >= self.drop_path
            added = added * kept / (1 - self.drop_path)
        return mixed + added


class Stem(nn.Module):
    """The start of the side stream: a linear map of what the backbone's first block reads.

    Args:
        stem: the input of the first block.
        width: of the side stream.
    """

    def __init__(self, stem: BackboneBlock, width: int):
        super().__init__()
        self.to_front, self.width = stem.is_map and stem.axis == -1, width
        self.down = pointwise(stem.channels, width, stem.is_map)
        self.tap_output: Tensor | None = None
        """The input of the first block, kept until ``forward`` reads it."""

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep the input of the first block: a forward pre-hook of it.

        Args:
            module: the block; not used.
            inputs: the first of them is kept without gradient.
        """
        self.tap_output = inputs[0].detach()

    def extra_repr(self) -> str:
        return f"width={self.width}"

    def forward(self) -> Tensor:
        assert self.tap_output is not None
        h = self.tap_output.movedim(-1, 1) if self.to_front else self.tap_output
        self.tap_output = None
        return self.down(h)


def gate(alpha: Tensor) -> Tensor:
    """Weight of the side stream in the mix: ``sigmoid(α / 0.1)``."""
    return torch.sigmoid(alpha / 0.1)


def pointwise(inputs: int, outputs: int, is_map: bool) -> nn.Module:
    """A linear map of the channels.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        is_map: whether the input is a map [B, C, H, W], else tokens [B, N, C].

    Returns:
        A 1×1 conv or a Linear, with bias.
    """
    return nn.Conv2d(inputs, outputs, 1) if is_map else nn.Linear(inputs, outputs)
