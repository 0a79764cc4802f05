"""One forward pass of a frozen network in which every image has weights of its own.

The frozen weights are read once for the whole batch. What differs between images is computed for all of them at once,
by the kind of the layer:

==============  =====================================================================================================
change          output of image i
==============  =====================================================================================================
``Product``     ``R_i ⊙ (W ∗ (S_i ⊙ x_i)) + B_i (A_i ∗ x_i) + h_i`` of a Linear or conv, see
                :mod:`distill.deltas.activation`; h_i is the change of the bias. Ranks are padded to the largest
``Whole``       ``W_i ∗ x_i + b_i`` of a depthwise conv or a classifier, whose weights are few; any weight delta
``Affine``      ``f_i ⊙ x̂_i + o_i`` of a norm, any weight delta; of a batch norm with its statistics, x̂ is x
==============  =====================================================================================================

A conv with weights for each image is one conv over the batch as its groups.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, GroupNorm1, LayerNorm2d, pad_same
from timm.layers import GroupNorm as TimmGroupNorm
from timm.layers import LayerNorm as TimmLayerNorm
from timm.layers.linear import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaError, WeightDelta
from distill.deltas.blocks import empty_image
from distill.deltas.sites import layer_kind

AtRows = tuple[tuple[int, int] | None, WeightDelta]
"""The rows of the layer that a delta changes (None: all), and the delta."""


class NoFormError(DeltaError):
    """Images with this change cannot share a pass with others; the text says what has no form."""


@dataclass(frozen=True)
class Product:
    rows: Tensor | None
    """[out]"""
    columns: Tensor | None
    """[in]"""
    A: Tensor | None
    """[g, r, n]"""
    B: Tensor | None
    """[g, out/g, r]"""
    shift: Tensor | None
    """[out]"""


@dataclass(frozen=True)
class Whole:
    weight: Tensor
    """Of a depthwise conv [out, 1, kh, kw], or of a classifier [classes, in]; then images may differ in classes."""
    bias: Tensor | None


@dataclass(frozen=True)
class Affine:
    factor: Tensor
    """[C]"""
    offset: Tensor | None
    """[C]"""


Change = Product | Whole | Affine
"""What one set of deltas changes of one layer; its tensors have no gradient."""


def tensors_of(change: Change) -> list[Tensor]:
    values = (getattr(change, each.name) for each in fields(change))
    return [value for value in values if value is not None]


@torch.no_grad()
def change_of(layer: nn.Module, deltas: Sequence[AtRows], statistics: Mapping[str, Tensor] | None = None) -> Change:
    """What deltas change of a layer, in the form in which images of one pass can differ.

    Args:
        layer: with its frozen weights.
        deltas: on this layer, in their order; the last is applied last.
        statistics: ``running_mean`` and ``running_var`` that replace those of a batch norm.

    Returns:
        The change.

    Raises:
        NoFormError: a delta has no activation form, or the layer computes in a way of its own.
    """
    if _forward_of(layer) is None:
        raise NoFormError(f"a change of {type(layer).__name__}")
    kind = layer_kind(layer)
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    bias: Tensor | None = None if layer.bias is None else layer.bias.detach()  # type: ignore[operator]
    if kind == "norm":
        weight, bias = _changed(weight, bias, deltas)
        return _affine(layer, weight, bias, statistics or {})
    if kind == "depthwise":
        return whole_change(layer, deltas)
    form = ActivationForm()
    of_weight = [(rows, delta) for rows, delta in deltas if delta.changes_weight]
    before = weight
    for number, (rows, delta) in enumerate(of_weight):
        if number:
            before, _ = _changed(before, None, of_weight[number - 1 : number])
        now = None
        if rows is None:
            now = delta.activation_form(form, before)
        elif (part := delta.activation_form(form.of_rows(*rows), before[slice(*rows)])) is not None:
            now = form.with_rows(part, *rows, out=len(weight))
        if now is None:
            raise NoFormError(f"a {delta.settings.type} delta of a {kind} layer")
        form = now
    shift = None
    if bias is not None:
        _, changed = _changed(weight, bias, deltas)
        assert changed is not None
        shift = changed - (bias if form.rows is None else bias * form.rows)
        shift = shift if shift.any() else None
    own = (form.rows, form.columns, form.A, form.B, shift)
    return Product(*(None if tensor is None else tensor.detach().contiguous() for tensor in own))


@torch.no_grad()
def whole_change(layer: nn.Module, deltas: Sequence[AtRows]) -> Whole:
    """The weight and bias of a classifier with its deltas.

    Args:
        layer: a Linear.
        deltas: on it, in their order.

    Returns:
        Its change.
    """
    bias: Tensor | None = None if layer.bias is None else layer.bias.detach()  # type: ignore[operator]
    weight, bias = _changed(layer.weight.detach(), bias, deltas)  # type: ignore[operator]
    return Whole(weight.contiguous(), bias)


def _changed(weight: Tensor, bias: Tensor | None, deltas: Sequence[AtRows]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias by the definition of the deltas."""

    def apply(change: Callable[[Tensor], Tensor], tensor: Tensor, rows: tuple[int, int] | None) -> Tensor:
        if rows is None:
            return change(tensor)
        first, end = rows
        return torch.cat([tensor[:first], change(tensor[first:end]), tensor[end:]])

    for rows, delta in deltas:
        if bias is not None and delta.changes_bias:
            bias = apply(delta.bias, bias, rows)
        weight = apply(delta, weight, rows)
    return weight, bias


def _affine(layer: nn.Module, weight: Tensor, bias: Tensor | None, statistics: Mapping[str, Tensor]) -> Affine:
    if not isinstance(layer, nn.BatchNorm2d):
        return Affine(weight.clone(), None if bias is None else bias.clone())
    mean = statistics.get("running_mean", layer.running_mean)
    var = statistics.get("running_var", layer.running_var)
    assert mean is not None and var is not None and bias is not None
    factor = weight * (var + layer.eps).rsqrt()
    return Affine(factor, bias - mean * factor)


class PerImageModel:
    """A frozen network whose layers can have other weights for each image of a batch. Threads may call it at once.

    Args:
        model: in eval mode; its layers' ``forward`` are replaced. It must not be used otherwise afterwards.
        heads: names of its classifiers.

    Attributes:
        layers: name → layer, those that can be changed.
    """

    def __init__(self, model: nn.Module, heads: Sequence[str] = ()):
        self.model, self.heads = model, tuple(heads)
        self._now = threading.local()
        self.layers: dict[str, nn.Module] = {}
        for name, layer in model.named_modules():
            if _forward_of(layer) is not None:
                self.layers[name] = layer
        for name in self.layers.keys() - _with_images_outermost(model, self.layers):
            del self.layers[name]
        for name, layer in self.layers.items():
            layer.forward = partial(self._forward, name, layer)  # type: ignore[method-assign]

    @torch.no_grad()
    def __call__(self, images: Tensor, changes: Mapping[str, Sequence[Change | None]]) -> Tensor:
        """The network's output.

        Args:
            images: [N, C, H, W].
            changes: name of a layer → what changes for each of the N images; None: nothing.

        Returns:
            What the network gives; logits have as many columns as the largest classifier, others are filled with 0.
        """
        self._now.changes = changes
        try:
            with torch.autocast(images.device.type, enabled=False):
                return self.model(images)
        finally:
            del self._now.changes

    def _forward(self, name: str, layer: nn.Module, x: Tensor, *more: Any, **named: Any) -> Tensor:
        changes = getattr(self._now, "changes", {}).get(name)
        if changes is None:
            return type(layer).forward(layer, x, *more, **named)
        return _classify(layer, x, changes) if name in self.heads else forward_each(layer, x, changes)


def forward_each(layer: nn.Module, x: Tensor, changes: Sequence[Change | None]) -> Tensor:
    """The output of a layer with changes for each image.

    Args:
        layer: of which ``change_of`` made the changes.
        x: its input; the first axis has the images, or as many tokens or windows of each, one image after the other.
        changes: of each image; None: nothing changes.

    Returns:
        The shape of its output.
    """
    forward = _forward_of(layer)
    assert forward is not None
    return forward(layer, x, changes)


def _forward_of(layer: nn.Module) -> Callable[[Any, Tensor, Sequence[Any]], Tensor] | None:
    """The forward of a layer with changes for each image; None for a layer that computes in a way of its own."""
    if getattr(layer, "_fast_norm", False) or getattr(layer, "weight", None) is None:
        return None
    forward = _FORWARDS.get(type(layer).forward)
    if forward is _batch_norm and not (isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None):
        return None
    return _whole_conv if forward is _product_conv and layer_kind(layer) == "depthwise" else forward


@torch.no_grad()
def _with_images_outermost(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    """Names of the layers whose input for a batch is that for its images one after the other; none without logits.

    A layer that mixes images, or has them on another axis, cannot know whose rows it computes.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Any:
        return lambda layer, given: inputs[name].append(_by_row(given[0]))

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    empty = empty_image(model)
    images = torch.cat([empty, empty + torch.linspace(-1, 1, empty.numel()).to(empty).view(empty.shape)])
    try:
        outputs = [model(batch) for batch in (images, images[:1], images[1:])]
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(outputs[0], Tensor) or outputs[0].ndim != 2:
        return set()
    return {name for name, kept in inputs.items() if _in_sequence(kept)}


def _by_row(x: Tensor) -> Tensor:
    """A number for each entry of the first axis, and the other axes' sizes, which two inputs do not share by chance."""
    row = x.flatten(1).double()
    weights = torch.cos(torch.arange(row.shape[1], dtype=row.dtype, device=x.device))
    sizes = row.new_tensor(x.shape[1:]).expand(len(x), -1)
    return torch.cat([(row @ weights)[:, None], row.square().mean(1)[:, None], sizes], 1)


def _in_sequence(inputs: list[Tensor]) -> bool:
    """Whether the inputs of a batch of two are those of each image; a layer that is called n times has 3 n inputs."""
    calls = len(inputs) // 3
    if not calls or len(inputs) != 3 * calls:
        return False
    for both, first, second in zip(inputs[:calls], inputs[calls : 2 * calls], inputs[2 * calls :]):
        expected = torch.cat([first, second])
        if both.shape != expected.shape or not torch.allclose(both, expected, rtol=1e-3, atol=1e-3):
            return False
    return True


# --- Tensors of a batch -------------------------------------------------------------------------------------------


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """[N, …]; a view if all are the same tensor."""
    first = tensors[0]
    if all(tensor is first for tensor in tensors):
        return first.expand(len(tensors), *first.shape)
    return torch.stack(tensors)  # type: ignore[arg-type]  # any sequence


def _widened(tensors: Sequence[Tensor], axis: int) -> list[Tensor]:
    """The tensors, filled with zeros at the end of an axis up to the longest."""
    longest = max(tensor.shape[axis] for tensor in tensors)
    after = 2 * (tensors[0].ndim - 1 - axis) + 1
    return [F.pad(t, (*[0] * after, short)) if (short := longest - t.shape[axis]) else t for t in tensors]


def _gathered(changes: Sequence[Product | None], name: str, neutral: float) -> Tensor | None:
    """A vector of each image's change, [N, C]; None if no image has it."""
    own = [None if change is None else getattr(change, name) for change in changes]
    like = next((tensor for tensor in own if tensor is not None), None)
    if like is None:
        return None
    rest = None if all(tensor is not None for tensor in own) else torch.full_like(like, neutral)
    return _stack([rest if tensor is None else tensor for tensor in own])  # type: ignore[misc]


def _factors(changes: Sequence[Product | None]) -> tuple[Tensor, Tensor] | None:
    """A [N, g, r, n] and B [N, g, out/g, r] with the largest rank r; None if no image has a product."""
    own: list[Any] = [None if change is None or change.A is None else (change.A, change.B) for change in changes]
    like = next((pair for pair in own if pair is not None), None)
    if like is None:
        return None
    rest = None if all(own) else (torch.zeros_like(like[0][:, :1]), torch.zeros_like(like[1][:, :, :1]))
    every_A, every_B = zip(*(pair or rest for pair in own))
    if len({A.shape[1] for A in every_A}) > 1:
        every_A, every_B = _widened(every_A, 1), _widened(every_B, 2)
    return _stack(every_A), _stack(every_B)


# --- Layers -------------------------------------------------------------------------------------------------------


def _product_linear(layer: nn.Linear, x: Tensor, changes: Sequence[Product | None]) -> Tensor:
    x_NTI = x.reshape(len(changes), -1, x.shape[-1])  # tokens or windows of each image
    columns, rows, shift = (_gathered(changes, *each) for each in (("columns", 1), ("rows", 1), ("shift", 0)))
    y = F.linear(x_NTI if columns is None else x_NTI * columns[:, None], layer.weight, layer.bias)
    if rows is not None:
        y.mul_(rows[:, None])
    if shift is not None:
        y.add_(shift[:, None])
    if (factors := _factors(changes)) is not None:
        A_NRI, B_NOR = (factor.squeeze(1) for factor in factors)
        y.baddbmm_(torch.bmm(x_NTI, A_NRI.mT), B_NOR.mT)
    return y.view(*x.shape[:-1], -1)


def _product_conv(layer: nn.Conv2d, x: Tensor, changes: Sequence[Product | None]) -> Tensor:
    columns, rows, shift = (_gathered(changes, *each) for each in (("columns", 1), ("rows", 1), ("shift", 0)))
    y = type(layer).forward(layer, x if columns is None else x * columns[..., None, None])
    if rows is not None:
        y.mul_(rows[..., None, None])
    if shift is not None:
        y.add_(shift[..., None, None])
    if (factors := _factors(changes)) is not None:
        A, B = factors
        blocks, rank = len(x) * layer.groups, A.shape[2]
        if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and y.shape[2:] == x.shape[2:]:
            inner = torch.bmm(A.reshape(blocks, rank, -1), x.reshape(blocks, -1, x[0, 0].numel()))
        else:
            windows = A.reshape(blocks * rank, *layer.weight.shape[1:])
            inner = _batch_as_groups(layer, x, windows, None).reshape(blocks, rank, -1)
        y = y if layer.groups == 1 else y.contiguous()
        y.view(blocks, -1, y[0, 0].numel()).baddbmm_(B.reshape(blocks, -1, rank), inner)
    return y


def _whole_conv(layer: nn.Conv2d, x: Tensor, changes: Sequence[Whole | None]) -> Tensor:
    frozen = Whole(layer.weight, layer.bias)
    own = [change or frozen for change in changes]
    weight = _stack([change.weight for change in own]).flatten(0, 1)
    bias = None if layer.bias is None else _stack([change.bias for change in own]).flatten()  # type: ignore[misc]
    y = _batch_as_groups(layer, x, weight, bias)
    return y.reshape(len(x), -1, *y.shape[2:])


def _batch_as_groups(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A conv like the layer's, with weights [N · out, in/g, kh, kw] for each of N images: [1, N · out, H', W']."""
    x = x.reshape(1, -1, *x.shape[2:])
    groups = x.shape[1] // weight.shape[1]
    if isinstance(layer, Conv2dSame):
        x = pad_same(x, list(layer.kernel_size), list(layer.stride), list(layer.dilation))
        return F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, groups)
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        return F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, groups)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)


def _classify(layer: nn.Module, x: Tensor, changes: Sequence[Whole]) -> Tensor:
    """Logits [N, K]; K of the largest classifier."""
    weight = _stack(_widened([change.weight for change in changes], 0))
    bias = _stack(_widened([change.bias for change in changes], 0)) if changes[0].bias is not None else None  # type: ignore
    x_NTI = x.reshape(len(changes), -1, x.shape[-1])
    y = torch.bmm(x_NTI, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x_NTI, weight.mT)
    return y.view(*x.shape[:-1], -1)


def _affine_of(layer: nn.Module, changes: Sequence[Affine | None]) -> tuple[Tensor, Tensor | None]:
    """Factor and offset [N, C] of each image."""
    if any(change is None for change in changes):
        frozen = change_of(layer, [])
        changes = [change or frozen for change in changes]  # type: ignore[misc]
    offset = None if changes[0].offset is None else _stack([change.offset for change in changes])  # type: ignore
    return _stack([change.factor for change in changes]), offset  # type: ignore[union-attr]


def _scaled(x: Tensor, factor: Tensor, offset: Tensor | None) -> Tensor:
    return x * factor if offset is None else torch.addcmul(offset, x, factor)


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor, changes: Sequence[Affine | None]) -> Tensor:
    factor, offset = _affine_of(layer, changes)
    assert offset is not None
    y = torch.addcmul(offset[..., None, None], x, factor[..., None, None])
    if isinstance(layer, BatchNormAct2d):
        y = layer.act(layer.drop(y))
    return y


def _layer_norm(layer: nn.LayerNorm, x: Tensor, changes: Sequence[Affine | None]) -> Tensor:
    factor, offset = _affine_of(layer, changes)
    y = F.layer_norm(x, layer.normalized_shape, None, None, layer.eps).view(len(changes), -1, x.shape[-1])
    return _scaled(y, factor[:, None], None if offset is None else offset[:, None]).view(x.shape)


def _layer_norm_of_map(layer: nn.LayerNorm, x: Tensor, changes: Sequence[Affine | None]) -> Tensor:
    return _layer_norm(layer, x.permute(0, 2, 3, 1).contiguous(), changes).permute(0, 3, 1, 2)


def _group_norm(layer: nn.GroupNorm, x: Tensor, changes: Sequence[Affine | None]) -> Tensor:
    factor, offset = _affine_of(layer, changes)
    shape = (*factor.shape, *[1] * (x.ndim - 2))
    y = F.group_norm(x, layer.num_groups, None, None, layer.eps)
    return _scaled(y, factor.view(shape), None if offset is None else offset.view(shape))


_FORWARDS: dict[Any, Callable[[Any, Tensor, Sequence[Any]], Tensor]] = {
    nn.Linear.forward: _product_linear,
    TimmLinear.forward: _product_linear,
    nn.Conv2d.forward: _product_conv,
    Conv2dSame.forward: _product_conv,
    nn.BatchNorm2d.forward: _batch_norm,
    BatchNormAct2d.forward: _batch_norm,
    nn.LayerNorm.forward: _layer_norm,
    TimmLayerNorm.forward: _layer_norm,
    LayerNorm2d.forward: _layer_norm_of_map,
    nn.GroupNorm.forward: _group_norm,
    TimmGroupNorm.forward: _group_norm,
    GroupNorm1.forward: _group_norm,
}
"""The forward of a class → that with changes for each image. A class that computes otherwise is not in it."""
