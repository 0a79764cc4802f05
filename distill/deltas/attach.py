"""Put deltas on a model's layers, list them, and merge them away.

A delta is registered in ``layer.parametrizations``: the layer keeps its name and class, and ``layer.weight`` is the
changed weight. It is computed at every access; inside ``torch.nn.utils.parametrize.cached()``, once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distill.deltas.base import (
    DeltaError,
    DeltaSettings,
    LayerRefused,
    SizedSettings,
    StructuralDelta,
    WeightDelta,
    tensor_bytes,
)
from distill.deltas.blocks import block_names
from distill.deltas.dense import Dense
from distill.deltas.sites import Target, inside, owners_blocks, select
from distill.deltas.statistics import REPLACED, Statistics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One delta on one layer, or on a part of it."""

    name: str
    """Module name, ``[q]``, ``[k]`` or ``[v]`` behind it for a part of a fused projection."""
    index: int
    """Its position among the deltas of its layer; they compose in this order."""
    delta: WeightDelta | StructuralDelta | Statistics

    @property
    def key(self) -> str:
        """Prefix of the names of its tensors in a delta file."""
        return f"{self.name}.{self.index}"


class Change(nn.Module):
    """The parametrization that applies one delta to a layer's weight or bias.

    Computes in the weight's dtype, with autocast off, so that merging gives the weight that was trained.

    Args:
        delta: computes the change.
        site: name of the layer, or of a part of it, as in :class:`Site`.
        index: position of the delta among those of its layer.
        rows: first and past-the-last row that it changes; None: all.
        of_bias: whether it changes the bias, not the weight.
    """

    def __init__(self, delta: WeightDelta, site: str, index: int, rows: tuple[int, int] | None, of_bias: bool):
        super().__init__()
        self.delta, self.site, self.index, self.rows, self.of_bias = delta, site, index, rows, of_bias

    def extra_repr(self) -> str:
        return self.site

    def forward(self, tensor: Tensor) -> Tensor:
        change = self.delta.bias if self.of_bias else self.delta
        with torch.autocast(tensor.device.type, enabled=False):
            if self.rows is None:
                changed = change(tensor)
            else:
                first, end = self.rows
                changed = torch.cat([tensor[:first], change(tensor[first:end]), tensor[end:]])
        if changed.stride() == tensor.stride():
            return changed
        # A convolution selects its kernel by strides, also by those of axes of size 1; other kernels round differently.
        return torch.empty_like(tensor).copy_(changed)


class Replacement(Change):
    """The parametrization that replaces a buffer of a batch norm by that of its :class:`Statistics`.

    Args:
        delta: has the statistics.
        site: name of the layer.
        index: position of the delta among those of its layer.
        name: of the delta's tensor.
    """

    delta: Statistics  # type: ignore[assignment]

    def __init__(self, delta: Statistics, site: str, index: int, name: str):
        super().__init__(delta, site, index, None, of_bias=False)  # type: ignore[arg-type]
        self.name = name

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor if self.delta.normalization == "source" else getattr(self.delta, self.name)


def attach(
    model: nn.Module, specs: Sequence[DeltaSettings], exclude_head: str | Sequence[str] | None = None
) -> list[Site]:
    """Freeze a model and put deltas on it, in place.

    The parameters outside the head no longer require gradients; those of the deltas do. Deltas of several specs on one
    layer are composed in the order of ``specs``. A layer that cannot carry a delta (it lacks the bias that the delta
    changes, or the delta would be larger than the layer) is skipped if the pattern matches another layer that can.

    Args:
        model: any module; names are those of ``model.named_modules()``.
        specs: settings of weight deltas and structural deltas.
        exclude_head: module name(s) of the classifier. It is not frozen, and it gets a delta only from a pattern
            without wildcards. See :func:`distill.deltas.sites.classifier_names`.

    Returns:
        The new deltas, layer by layer in the model's order, then structural ones.

    Raises:
        DeltaError: a pattern matches no layer, or none that can carry its delta. Deltas attached before the error stay.
    """
    head = (exclude_head,) if isinstance(exclude_head, str) else tuple(exclude_head or ())
    before = {id(site.delta) for site in deltas(model)}
    freeze(model, head)
    for settings in specs:
        if settings.component is not None and issubclass(settings.component, StructuralDelta):
            attach_structural(model, settings)
        else:
            _add_everywhere(model, settings, head)
    _check_compatible(model, head)
    return [site for site in deltas(model) if id(site.delta) not in before]


def freeze(model: nn.Module, head: Sequence[str]) -> None:
    """Turn off the gradient of every parameter but those of deltas and of the modules named in ``head``."""
    of_deltas = {id(parameter) for site in deltas(model) for parameter in site.delta.parameters()}
    for name, parameter in model.named_parameters():
        if not inside(name, head) and id(parameter) not in of_deltas:
            parameter.requires_grad_(False)


def attach_delta(model: nn.Module, settings: DeltaSettings, target: Target) -> None:
    """Put one weight delta on one target.

    Args:
        model: changed in place.
        settings: of the delta.
        target: a layer, or rows of one.

    Raises:
        LayerRefused: the layer cannot carry the delta.
    """
    layer = model.get_submodule(target.layer)
    if settings.component is Statistics:
        _replace_statistics(layer, settings, target.name)
        return
    part = layer_at(model, target)
    delta = new_delta(settings, part, target.name)
    if parametrize.is_parametrized(layer):
        _own_class(layer)
    method = type(delta)
    index = 1 + max((change.index for change in _changes(layer)), default=-1)
    if method.changes_weight:
        change = Change(delta, target.name, index, target.rows, of_bias=False)
        parametrize.register_parametrization(layer, "weight", change)
    if method.changes_bias and getattr(part, "bias", None) is not None:
        change = Change(delta, target.name, index, target.rows, of_bias=True)
        parametrize.register_parametrization(layer, "bias", change)
    # parametrize gave this layer a class of its own. Replacing the forward of that class changes no other layer, is
    # kept by a deepcopy, and ends when the parametrization is removed.
    if type(layer).__bases__[0] in (nn.Linear, nn.Conv2d):
        type(layer).forward = _forward  # type: ignore[method-assign]


def new_delta(settings: DeltaSettings, layer: nn.Module, name: str) -> WeightDelta:
    """A weight delta for a layer, which is not changed; its errors name the layer.

    Raises:
        LayerRefused: the layer cannot carry the delta.
    """
    method = settings.component
    assert method is not None and issubclass(method, WeightDelta)
    try:
        return _fitting(method, settings, layer)
    except DeltaError as error:
        raise type(error)(f"{settings.type}: {name!r} {error}") from None


def _replace_statistics(layer: nn.Module, settings: DeltaSettings, name: str) -> None:
    try:
        delta = Statistics(settings, layer)  # type: ignore[arg-type]
    except DeltaError as error:
        raise type(error)(f"{settings.type}: {name!r} {error}") from None
    if any(buffer in _parametrizations(layer) for buffer in REPLACED):
        raise DeltaError(f"{settings.type}: {name!r} has other statistics already; name the entry once")
    if parametrize.is_parametrized(layer):
        _own_class(layer)
    index = 1 + max((change.index for change in _changes(layer)), default=-1)
    for buffer, own in REPLACED.items():
        parametrize.register_parametrization(layer, buffer, Replacement(delta, name, index, own))


def attach_structural(model: nn.Module, settings: DeltaSettings) -> None:
    """Put one structural delta on a model, as its child ``structural_0``, ``structural_1`` and so on."""
    method = settings.component
    assert method is not None and issubclass(method, StructuralDelta)
    count = sum(isinstance(child, StructuralDelta) for child in model.children())
    like = next(model.parameters())
    delta = method(settings, model).to(like.device, like.dtype)
    if owners_blocks(model):
        _name_the_ends(model, delta)
    delta.attach(model)
    model.add_module(f"structural_{count}", delta)


def _name_the_ends(model: nn.Module, delta: StructuralDelta) -> None:
    """Replace the patterns of a delta on an emulator by names: in the full network they match other blocks too."""
    if not delta.shares_backbone:
        raise DeltaError(
            f"{delta.settings.type}: it reads the whole backbone, and of an emulator only the ends can be "
            "changed; use a weight delta such as low_rank, or 'adapter'"
        )
    blocks = [*block_names(model, "blocks"), *block_names(model, "stages")]
    own = [block for block in dict.fromkeys(blocks) if any(inside(part, [block]) for part in delta.parts())]
    smallest = [block for block in own if not any(other != block and inside(other, [block]) for other in own)]
    if smallest:
        delta.settings = delta.settings.model_copy(update={"sites": tuple(smallest), "exclude": ()})


def layer_at(model: nn.Module, target: Target) -> nn.Module:
    """The layer of a target; for rows of a fused projection, a Linear with these rows."""
    layer = model.get_submodule(target.layer)
    if target.rows is None:
        return layer
    assert isinstance(layer, nn.Linear)
    has_bias = layer.bias is not None
    part = nn.Linear(layer.in_features, target.rows[1] - target.rows[0], bias=has_bias, device="meta")
    part.weight = nn.Parameter(layer.weight.detach()[slice(*target.rows)], requires_grad=False)
    if has_bias:
        part.bias = nn.Parameter(layer.bias.detach()[slice(*target.rows)], requires_grad=False)
    return part


def deltas(model: nn.Module) -> list[Site]:
    """All deltas of a model, layer by layer in the model's order, then structural ones."""
    sites: dict[int, Site] = {}
    structural: list[Site] = []
    for name, module in model.named_modules():
        if isinstance(module, StructuralDelta):
            structural.append(Site(name, 0, module))
        elif changes := _changes(module):
            for change in sorted(changes, key=lambda change: change.index):
                sites.setdefault(id(change.delta), Site(change.site, change.index, change.delta))
    return [*sites.values(), *structural]


def penalty(sites: Sequence[Site]) -> Tensor | None:
    """The sum of the deltas' penalties in fp32; None if no delta has one."""
    device = next((parameter.device.type for site in sites for parameter in site.delta.parameters()), "cpu")
    with torch.autocast(device, enabled=False):
        terms = [term.float() for site in sites if (term := site.delta.penalty()) is not None]
    return torch.stack(terms).sum() if terms else None


def merge(model: nn.Module) -> None:
    """Replace every weight by its changed weight and remove the deltas, in place. Exact.

    Raises:
        DeltaError: the model has a structural delta, which cannot be merged into weights.
    """
    for site in deltas(model):
        if isinstance(site.delta, StructuralDelta):
            raise DeltaError(
                f"{site.name!r} ({site.delta.settings.type}) is structural: it cannot be merged. Use its delta file "
                "together with the backbone, or a weight delta such as low_rank, which can be merged"
            )
    merge_weights(model)


def merge_weights(model: nn.Module) -> None:
    """Replace every weight by its changed weight, in place; structural deltas stay. Exact."""
    with torch.no_grad():
        for layer in [module for module in model.modules() if _changes(module)]:
            for change in _changes(layer):
                change.eval()  # a delta may be random in training mode
            _own_class(layer)
            for name in list(_parametrizations(layer)):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


def _check_compatible(model: nn.Module, head: Sequence[str]) -> None:
    """Refuse deltas on a backbone into which another delta sends no gradient."""
    learned = [site for site in deltas(model) if not isinstance(site.delta, Statistics)]
    sites = [site for site in learned if not inside(site.name, head)]
    for site in sites:
        if isinstance(site.delta, StructuralDelta) and not site.delta.shares_backbone and len(sites) > 1:
            other = next(another for another in sites if another is not site)
            raise DeltaError(
                f"{site.delta.settings.type}: no gradient enters the backbone, so {other.delta.settings.type} at "
                f"{other.name!r} would get no gradient; leave one of them out (deltas of the classifier may stay)"
            )


def _add_everywhere(model: nn.Module, settings: DeltaSettings, head: Sequence[str]) -> None:
    for pattern, targets in select(model, settings, head).items():
        refused = []
        for target in targets:
            try:
                attach_delta(model, settings, target)
            except LayerRefused as refusal:
                refused.append(str(refusal))
        if refused and len(refused) == len(targets):
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise DeltaError(f"pattern {pattern!r} matches no layer that can carry its delta: {refused[0]}{more}")
        if refused:
            log.info("%d of %d layers of %r get no delta, e.g. %s", len(refused), len(targets), pattern, refused[0])


def _fitting(method: type[WeightDelta], settings: DeltaSettings, layer: nn.Module) -> WeightDelta:
    """The delta of one layer; a dense one if it would be oversized and the settings say ``oversized: dense``."""
    delta = method(settings, layer)
    own, size = tensor_bytes([layer.weight]), tensor_bytes(delta.state_dict().values())  # type: ignore[list-item]
    if not isinstance(settings, SizedSettings) or size < own:
        return delta
    if settings.oversized == "dense":
        return Dense(Dense.Settings(), layer)
    advice = "make it smaller (rank, density), set oversized: dense, or leave the layer out"
    kind = DeltaError if settings.oversized == "error" else LayerRefused
    raise kind(f"has a weight of {own:,} bytes, and its delta would take {size:,}; {advice}")


def _parametrizations(layer: nn.Module) -> Any:
    """``weight`` and ``bias`` → their parametrizations; empty for a layer without any."""
    return layer._modules.get("parametrizations") or {}  # several times as fast as getattr, which fails on most layers


def _changes(layer: nn.Module) -> list[Change]:
    return [change for tensor in _parametrizations(layer).values() for change in tensor if isinstance(change, Change)]


def _own_class(layer: nn.Module) -> None:
    """Give the layer a class of its own.

    Deep copies share the class that parametrize makes: a tensor added to or removed from one would break the others.
    """
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    """Forward of a plain Linear or Conv2d: ``delta.output`` while gradients are recorded, else the changed weight."""
    tensors: Any = getattr(layer, "parametrizations", {})
    if torch.is_grad_enabled() and "weight" in tensors and len(tensors["weight"]) == 1:
        change = tensors["weight"][0]
        bias_is_its_own = "bias" not in tensors or len(tensors["bias"]) == 1
        if change.rows is None and (bias_is_its_own or not change.delta.changes_bias):
            y = change.delta.output(layer, x)
            if y is not None:
                return y
    plain: Any = type(layer).__bases__[0]
    return plain.forward(layer, x)
