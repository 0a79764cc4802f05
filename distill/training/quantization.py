"""Training under the rounding that export applies, so that deltas and head learn to work with it.

Two independent parts, both in the last epochs, and both with a straight-through gradient:

- *int8 formats* (``weights``, ``activations``): the student computes with the rounding of the int8 export targets.
  Every conv and linear layer, those of structural deltas included, has

  ``W' = s · clamp(round(W / s), −q, q)`` per output channel, ``s = max |W| / q``, ``q = 2^(bits−1) − 1``,

  where W is the merged weight, backbone with deltas, so that each delta is trained with it; the frozen backbone is
  rounded too and stays frozen. Folding a batch norm multiplies the rows of W, and s with them, so W' is also what an
  exporter stores that folds it first. The layer's input x, after the activation function before it, is

  ``x' = s · (clamp(round(x / s) + z, 0, 2^bits − 1) − z)`` with one s and z for the tensor,

  which span a range [low, high] that contains 0. It follows the batches' extremes r after each update t:
  ``range ← d · range + (1 − d) · r``, ``d = min(0.99, (1 + t) / (10 + t))``, and is fixed in the last part of the
  quantized training (``observe``). r is over the batches of the update and all ranks. The first update rounds no inputs
  and only notes r. A layer that no earlier update ran has the r of its batch. Biases, additions and pooling are not
  rounded here; where exporters round them, it is to 8 bits as well.
- *a small delta file* (``deltas``, ``head``): these tensors are read as :func:`distill.export.delta.packing.pack`
  stores them. At the end they are rounded for good, after the moving average of the weights, and the delta file holds
  them in this format.

The ranges are part of a checkpoint, but not of the result: an int8 format calibrates its own. Validation rounds deltas
and head, and nothing else: it measures the student of the delta file.

Papers: Jacob et al., arXiv 1712.05877 (training with rounded weights and activations); Bengio et al., arXiv 1308.3432
(straight-through gradient); Liu et al., BitDelta, arXiv 2402.10193 (sign).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill.deltas.base import Delta
from distill.deltas.sites import classifier_names, inside
from distill.deltas.statistics import Statistics
from distill.export.delta.packing import Format, rounded
from distill.models.features import Features
from distill.models.student import Student
from distill.objectives.ranks import world_size
from distill.training.settings import QuantizeSettings

MOST = 0.99
"""Largest part of the old range that remains at an update."""
_TINY = torch.finfo(torch.float32).tiny


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """A weight [out, ...] rounded symmetrically to ``bits`` per output channel, with a straight-through gradient.

    >>> import torch
    >>> from distill.training.quantization import rounded_weight
    >>> rounded_weight(torch.tensor([[0.2, -1.0], [0.0, 0.0]]), bits=3)
    tensor([[ 0.3333, -1.0000],
            [ 0.0000,  0.0000]])
    """
    largest = 2 ** (bits - 1) - 1
    size = weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(size == 0, 1.0, size / largest)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest, largest)


def rounded_activation(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """A tensor rounded to ``bits`` in a range, with a straight-through gradient where it is within the range.

    Args:
        x: any shape; computed in fp32.
        low: scalar, end of the range; the range is widened to contain 0.
        high: scalar, the other end.
        bits: number of them.

    Returns:
        The rounded tensor, in the dtype of ``x``.
    """
    levels = 2**bits - 1
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / levels).clamp_min(_TINY * levels)
    zero = (-low / scale).round().clamp(0, levels).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, levels).to(x.dtype)


class RoundedWeight(nn.Module):
    """The parametrization that rounds a weight after its deltas; see :func:`rounded_weight`."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def forward(self, weight: Tensor) -> Tensor:
        return rounded_weight(weight, self.bits)


@dataclass(frozen=True)
class _Stored:
    """A tensor of the delta file that is rounded in training."""

    name: str
    """In the student."""
    module: nn.Module
    attribute: str
    form: Format

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.attribute)


class Quantization(nn.Module):
    """Runs a student under the rounding of ``training.quantize``; outside :meth:`forward` the student is as it was.

    Args:
        student: before or after its training. It is not changed, and not a child of this module.
        settings: what is rounded.
        epochs: of the training.
        steps_per_epoch: number of updates in an epoch.

    Raises:
        ValueError: the student cannot be trained under this rounding, or stored so.
    """

    ranges: Tensor
    seen: Tensor

    def __init__(self, student: Student, settings: QuantizeSettings, epochs: int, steps_per_epoch: int):
        super().__init__()
        _check(student, settings)
        self.settings = settings
        length = min(max(1, round(settings.epochs * steps_per_epoch)), epochs * steps_per_epoch)
        self.begins = epochs * steps_per_epoch - length
        """The first update, counted from 0, that is quantized."""
        self.fixed = self.begins + max(1, round(settings.observe * length))
        """The first update whose batches do not change the ranges."""
        layers = _layers(student.model) if settings.computes else {}
        self._weights = [f"model.{name}.weight" for name, own in layers.items() if "weight" in own._parameters]
        self._layers = list(layers.values())
        self._stored = _stored(student, settings)
        unseen = torch.tensor([torch.inf, -torch.inf]).repeat(len(layers) if settings.activations else 0, 1)
        self.register_buffer("ranges", unseen)
        self.register_buffer("seen", unseen.clone())

    def extra_repr(self) -> str:
        own = self.settings.model_dump(exclude_none=True, exclude={"epochs", "observe"})
        parts = [f"{name}={value}" for name, value in own.items()]
        return ", ".join([*parts, f"layers={len(self._layers)}, begins={self.begins}, fixed={self.fixed}"])

    def begin_now(self) -> None:
        """Round everything in the first update already, for a trial of one step."""
        self.fixed -= self.begins + 1
        self.begins = -1

    def is_on(self, step: int) -> bool:
        """Whether an update, counted from 0, is quantized."""
        return step >= self.begins

    def forward(self, student: Student, view: Tensor, step: int) -> Features:
        """The outputs of the rounded student.

        Args:
            student: that this was built for.
            view: [B, C, H, W].
            step: number of the update, counted from 0.

        Returns:
            The outputs.
        """
        with torch.autocast(view.device.type, enabled=False):
            tensors = {own.name: _AsStored.apply(own.tensor, own.form) for own in self._stored}
            bits = self.settings.weights
            if bits is not None:
                for name in self._weights:
                    weight = tensors[name] if name in tensors else student.get_parameter(name)
                    tensors[name] = rounded_weight(weight, bits)
        with ExitStack() as stack:
            if bits is not None:
                stack.enter_context(self._after_deltas(bits))
            if (bits_of_inputs := self.settings.activations) is not None:
                bits_of_inputs = None if step == self.begins else bits_of_inputs
                for index, layer in enumerate(self._layers):
                    hook = _RoundInput(self, index, bits_of_inputs, observes=step < self.fixed)
                    stack.callback(layer.register_forward_pre_hook(hook).remove)
            return torch.func.functional_call(student, tensors, (view,))

    @contextmanager
    def _after_deltas(self, bits: int) -> Iterator[None]:
        """Round the weights that deltas change after the last of them."""
        lists: list[Any] = [
            layer.parametrizations["weight"]  # type: ignore[index]
            for layer in self._layers
            if "weight" in getattr(layer, "parametrizations", {})
        ]
        for changes in lists:
            changes.append(RoundedWeight(bits))
        try:
            yield
        finally:
            for changes in lists:
                del changes[-1]

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Let the ranges follow the batches of an update, counted from 0, on all ranks."""
        if not self.begins <= step < self.fixed or not len(self.seen):
            return
        lowest = self.seen * self.seen.new_tensor([1, -1])
        if world_size() > 1:
            dist.all_reduce(lowest, dist.ReduceOp.MIN)
        seen = lowest * lowest.new_tensor([1, -1])
        updates = step - self.begins
        kept = min(MOST, (1 + updates) / (10 + updates))
        followed = torch.where(self.ranges.isinf(), seen, seen.lerp(self.ranges, kept))
        self.ranges.copy_(torch.where(seen.isinf(), self.ranges, followed))
        self.seen[:, 0], self.seen[:, 1] = torch.inf, -torch.inf

    @torch.no_grad()
    def round_stored(self) -> None:
        """Round deltas and head for good."""
        for own in self._stored:
            own.tensor.copy_(rounded(own.tensor, own.form))

    @contextmanager
    def as_stored(self, step: int) -> Iterator[None]:
        """Within it, deltas and head are rounded if this update is; afterwards they are as before."""
        kept = [own.tensor.detach().clone() for own in self._stored] if self.is_on(step) else []
        if kept:
            self.round_stored()
        try:
            yield
        finally:
            with torch.no_grad():
                for own, tensor in zip(self._stored if kept else (), kept, strict=True):
                    own.tensor.copy_(tensor)


@dataclass(frozen=True)
class _RoundInput:
    """A forward pre-hook that rounds a layer's input, and notes its extremes.

    Args:
        owner: has the ranges.
        index: of the layer's.
        bits: of the rounded input; None: it is not rounded.
        observes: whether the extremes are noted.
    """

    owner: Quantization
    index: int
    bits: int | None
    observes: bool

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
            return None
        x = inputs[0]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            own = torch.stack(torch.aminmax(x.detach())).float()
            if self.observes:
                seen = self.owner.seen[self.index]
                # torch's minimum keeps NaN.
                seen.copy_(torch.stack([torch.minimum(seen[0], own[0]), torch.maximum(seen[1], own[1])]))
            if self.bits is None:
                return None
            known = self.owner.ranges[self.index]
            # Rounding would turn NaN into a number, and the guard would not see it.
            low, high = torch.where(known.isinf(), own, known) + (own - own)
        with torch.autocast(x.device.type, enabled=False):
            return rounded_activation(x, low, high, self.bits), *inputs[1:]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name → layer, of all convs and linear layers, those of structural deltas included."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}


def _stored(student: Student, settings: QuantizeSettings) -> list[_Stored]:
    """The fp32 tensors that a delta file stores in fewer bytes; batch-norm statistics are not among them."""
    learned = [site.delta for site in student.sites if not isinstance(site.delta, Statistics)]
    of_deltas = {id(t) for delta in learned for t in delta.state_dict(keep_vars=True).values()}
    head, stored, known = classifier_names(student.model), [], set[int]()
    for name, module in student.model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            full = f"{name}.{attribute}" if name else attribute
            form = settings.deltas if id(tensor) in of_deltas else settings.head if inside(full, head) else None
            if tensor is None or form is None or tensor.dtype != torch.float32 or id(tensor) in known:
                continue
            known.add(id(tensor))
            stored.append(_Stored(f"model.{full}", module, attribute, form))
    return stored


class _AsStored(torch.autograd.Function):
    """A tensor as a delta file stores it, with the gradient of the tensor itself."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, form: Format) -> Tensor:
        return rounded(tensor, form)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _check(student: Student, settings: QuantizeSettings) -> None:
    if student.compiled:
        raise ValueError("training.quantize: it changes the student in the last epochs; set student.compile to false")
    if student.full and settings.stored:
        key = next(iter(settings.stored))
        raise ValueError(f"training.quantize.{key}: student.train: full writes no delta file")
    if settings.deltas and not student.sites:
        raise ValueError("training.quantize.deltas: the student has no deltas")
    for site in student.sites:
        delta = site.delta
        if settings.deltas and isinstance(delta, Delta) and type(delta).redefines("finish"):
            raise ValueError(
                f"training.quantize.deltas: {delta.settings.type} converts its tensors after training, so they could "
                "not be stored as they were trained; leave it out, or use another delta"
            )
        if settings.computes and getattr(delta.settings, "cache_mb", False):
            raise ValueError(
                f"training.quantize: {delta.settings.type} caches the outputs of its backbone, which change under "
                "rounding; set its cache_mb to 0"
            )
