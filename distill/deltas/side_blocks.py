"""What stands beside the backbone in a ladder: thin blocks, and the rungs that feed them.

Maps are [B, C, H, W] in here whatever the backbone's layout, tokens [B, N, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.base import DeltaError
from distill.deltas.blocks import BackboneBlock, block_names

# Layers of a block that are not on the way of its stream.
_ASIDE = {"downsample", "shortcut", "se", "attn", "attn_se", "attn_last", "conv_skip"}


@dataclass(frozen=True)
class SideLayer:
    """One conv of a side block, and the backbone's layer that it is a thinner copy of, if any."""

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    depthwise: bool = False
    source: str = ""


@dataclass(frozen=True)
class Form:
    """What a side block looks like."""

    width: int
    steps: tuple[SideLayer, ...] = ()
    """Of a block of convs; empty for a transformer block."""
    heads: int = 1
    hidden: int = 0
    """Width of a transformer block's MLP."""
    source: str = ""
    """The backbone's transformer block that it is a thinner copy of, if any."""


def free_form(tap: BackboneBlock, reduction: int) -> Form:
    """A form for any backbone: depthwise 3×3 and two 1×1, or a transformer block with heads of 32."""
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
    """The form of the backbone's last block up to the tap, ``reduction`` times thinner.

    Raises:
        DeltaError: its layers are no chain of convs, and no attention and MLP as timm's ViT has them.
    """
    inside = [name for name in block_names(backbone, "blocks") if f"{name}.".startswith(f"{tap.name}.")]
    name = inside[-1] if inside else tap.name
    block: Any = backbone.get_submodule(name)
    refusal = DeltaError(
        f"ladder: no side block can be cut out of {name!r} ({type(block).__name__}) {{}}; set init: random, or name "
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
    """What a pre-norm transformer block adds to its stream."""

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
    """One step up: what the backbone shows at a tap is mixed into the side stream, and a side block follows.

    Args:
        tap: where it looks.
        form: of its block.
        before: width of the stream that arrives; None for the first rung, where none does.
        drop_path: chance that a sample skips the block in training.
    """

    def __init__(self, tap: BackboneBlock, form: Form, before: int | None, drop_path: float):
        super().__init__()
        self.form, self.to_front, self.drop_path = form, tap.is_map and tap.axis == -1, drop_path
        self.down = pointwise(tap.channels, form.width, tap.is_map)
        self.across = pointwise(before, form.width, tap.is_map) if before not in (None, form.width) else nn.Identity()  # type: ignore[arg-type]
        self.gate = nn.Parameter(torch.zeros(())) if before is not None else None
        self.block = SideConvs(form) if form.steps else SideTransformer(form)
        self.seen: Tensor | None = None
        """What the backbone showed at the tap, until the rung has used it."""

    def keep(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        """The forward hook on the tap."""
        self.seen = output.detach()

    def extra_repr(self) -> str:
        return f"width={self.form.width}, drop_path={self.drop_path}"

    def forward(self, s: Tensor | None) -> Tensor:
        assert self.seen is not None
        h = self.seen.movedim(-1, 1) if self.to_front else self.seen
        self.seen = None
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


def gate(alpha: Tensor) -> Tensor:
    """Share of the side stream in the mix: ``sigmoid(α / 0.1)``."""
    return torch.sigmoid(alpha / 0.1)


def pointwise(inputs: int, outputs: int, is_map: bool) -> nn.Module:
    """A linear map of the channels."""
    return nn.Conv2d(inputs, outputs, 1) if is_map else nn.Linear(inputs, outputs)
