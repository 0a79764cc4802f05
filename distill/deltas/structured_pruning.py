"""Structured pruning: initializes a side block from the most important channels of a frozen block.

The importance of a channel is the sum of the importances of the weights that compute it and of those that read it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distill.deltas.side_blocks import Rung, SideConvs, SideTransformer

Importance = Callable[[str], Tensor]
"""Layer name → importance of each of its weights, in the weight's shape."""


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the greatest ``count`` scores, ascending; of equal scores the first."""
    return torch.sort(torch.sort(scores, descending=True, stable=True).indices[:count]).values


def stream_scores(rung: Rung, backbone: nn.Module, importance: Importance) -> Tensor:
    """Importance of the channels at a rung's tap.

    Args:
        rung: of the side network; its form names the backbone's layers.
        backbone: a timm model.
        importance: of the layers' weights.

    Returns:
        [C], for the C channels of the tap's output.
    """
    if rung.form.steps:
        first, last = rung.form.steps[0], rung.form.steps[-1]
        scores = _matrix(backbone, last.source, importance).sum(1)
        reads = _matrix(backbone, first.source, importance)
        return scores + reads.sum(0) if reads.shape[1] == len(scores) else scores
    name = rung.form.source
    read = [importance(f"{name}.{layer}").sum(0) for layer in ("attn.qkv", "mlp.fc1")]
    written = [importance(f"{name}.{layer}").sum(1) for layer in ("attn.proj", "mlp.fc2")]
    return torch.stack(read + written).sum(0)


@torch.no_grad()
def prune_into(rung: Rung, backbone: nn.Module, importance: Importance, stream: Tensor) -> None:
    """Copy the kept channels of the backbone's block into a rung.

    Args:
        rung: overwritten.
        backbone: a timm model.
        importance: of the layers' weights.
        stream: indices of the kept channels of the tap's output, ascending, as many as the rung is wide.
    """
    selection = torch.zeros_like(rung.down.weight)  # type: ignore[arg-type]
    selection[torch.arange(len(stream)), stream] = 1
    rung.down.weight.copy_(selection)  # type: ignore[operator, union-attr]
    rung.down.bias.zero_()  # type: ignore[operator, union-attr]
    if isinstance(rung.block, SideConvs):
        _prune_convs(rung, rung.block, backbone, importance, stream)
    else:
        _prune_transformer(rung, rung.block, backbone, importance, stream)  # type: ignore[arg-type]


def _prune_convs(rung: Rung, block: SideConvs, backbone: nn.Module, importance: Importance, stream: Tensor) -> None:
    steps = rung.form.steps
    matrices = [_matrix(backbone, step.source, importance) for step in steps]
    reads_stream = matrices[0].shape[1] == matrices[-1].shape[0]
    # The first layer may read fewer channels than the side block does (a stage that gets wider, of one block): weights
    # that read the further ones are zero at first, and their filters, if the layer is depthwise, stay random.
    kept = stream if reads_stream else top(matrices[0].sum(0), min(steps[0].inputs, matrices[0].shape[1]))
    for number, (step, conv) in enumerate(zip(steps, block.convs, strict=True)):
        if number == len(steps) - 1:
            out = stream
        elif step.depthwise:
            out = kept
        else:
            out = top(matrices[number].sum(1) + matrices[number + 1].sum(0), step.outputs)
        layer = backbone.get_submodule(step.source)
        if step.depthwise:
            conv.weight[: len(out)] = layer.weight[out]  # type: ignore[index, operator]
        else:
            conv.weight.zero_()  # type: ignore[operator, union-attr]
            conv.weight[:, : len(kept)] = _ungrouped(layer, layer.weight)[out][:, kept]  # type: ignore[arg-type, operator, index]
        kept = out


def _prune_transformer(
    rung: Rung, block: SideTransformer, backbone: nn.Module, importance: Importance, stream: Tensor
) -> None:
    source = backbone.get_submodule(rung.form.source)
    heads, width = rung.form.heads, rung.form.width
    scores = {
        layer: importance(f"{rung.form.source}.{layer}") for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    rows = scores["attn.qkv"].sum(1).view(3, heads, -1)
    size = rows.shape[2]
    values = rows[2] + scores["attn.proj"].sum(0).view(heads, size)
    start = torch.arange(heads, device=rows.device).unsqueeze(1) * size
    matched = torch.cat([start[h] + top(scored, width // heads) for h, scored in enumerate(rows[0] + rows[1])])
    carried = torch.cat([start[h] + top(scored, width // heads) for h, scored in enumerate(values)])
    kept = torch.cat([matched, heads * size + matched, 2 * heads * size + carried])
    hidden = top(scores["mlp.fc1"].sum(1) + scores["mlp.fc2"].sum(0), rung.form.hidden)
    cuts = {
        "attn.qkv": (kept, stream),
        "attn.proj": (stream, carried),
        "mlp.fc1": (hidden, stream),
        "mlp.fc2": (stream, hidden),
    }
    for name, (out, into) in cuts.items():
        thick, thin = source.get_submodule(name), block.get_submodule(name.rpartition(".")[2])
        thin.weight.copy_(thick.weight[out][:, into])  # type: ignore[index, operator, union-attr]
        thin.bias.copy_(thick.bias[out] if thick.bias is not None else torch.zeros(len(out)))  # type: ignore[index, operator, union-attr]


def _matrix(backbone: nn.Module, name: str, importance: Importance) -> Tensor:
    """[out, in] importances of a layer, summed over the window; a diagonal matrix for a depthwise conv."""
    values = importance(name)
    return _ungrouped(backbone.get_submodule(name), values).flatten(2).sum(2)


def _ungrouped(layer: nn.Module, values: Tensor) -> Tensor:
    """A tensor of the weight's shape as that of a conv without groups, [out, in, kh, kw], with zeros between groups."""
    values = values.view(*values.shape, *[1] * (4 - values.ndim))
    groups: int = getattr(layer, "groups", 1)
    if groups == 1:
        return values
    return torch.stack(
        [torch.block_diag(*window.chunk(groups)) for window in values.flatten(2).unbind(2)], 2
    ).unflatten(2, values.shape[2:])
