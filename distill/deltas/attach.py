"""Put deltas on a model's layers, list them, and merge them away.

A delta lives in ``layer.parametrizations``: the layer keeps its name and class, ``layer.weight`` becomes the changed
weight. It is evaluated at every access; wrap an evaluation loop in ``torch.nn.utils.parametrize.cached()`` to do it
once.
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
from distill.deltas.dense import Dense
from distill.deltas.sites import Target, inside, select

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One delta on one place of the model."""

    name: str
    """Module name, ``[q]``, ``[k]`` or ``[v]`` behind it for a part of a fused projection."""
    index: int
    """Its position among the deltas of its layer; they compose in this order."""
    delta: WeightDelta | StructuralDelta

    @property
    def key(self) -> str:
        """What its tensors are called in a delta file, before the parameter's own name."""
        return f"{self.name}.{self.index}"


class Change(nn.Module):
    """One delta's hold on a layer's weight, or on its bias: the parametrization itself.

    A weight is changed in its own precision whatever autocast says, so that merging gives what was trained.
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
        # A convolution chooses its kernel by strides, even by those of size 1: others would round otherwise.
        return torch.empty_like(tensor).copy_(changed)


def attach(
    model: nn.Module, specs: Sequence[DeltaSettings], exclude_head: str | Sequence[str] | None = None
) -> list[Site]:
    """Freeze a model and put deltas on it, in place.

    Every parameter outside the head stops requiring a gradient; the deltas' own require one. Several specs that find
    the same layer compose in the order of ``specs``. A layer that cannot carry a delta (no bias where one is needed, or
    a delta larger than the layer) is passed over as long as its pattern finds another layer that can.

    Args:
        model: any module; names are those of ``model.named_modules()``.
        specs: settings of weight deltas and structural deltas.
        exclude_head: module name(s) of the classifier: neither frozen, nor changed unless named without wildcards. See
            :func:`distill.deltas.sites.classifier_names`.

    Raises:
        DeltaError: a pattern finds nothing, or nothing that can carry its delta; the model is left half done.
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


def attach_delta(model: nn.Module, settings: DeltaSettings, place: Target) -> None:
    """Put one weight delta on one place. Raises ``LayerRefused`` where the layer cannot carry it."""
    layer = model.get_submodule(place.layer)
    method = settings.component
    assert method is not None and issubclass(method, WeightDelta)
    part = layer_at(model, place)
    try:
        delta = _fitting(method, settings, part)
    except DeltaError as error:
        raise type(error)(f"{settings.type}: {place.name!r} {error}") from None
    if parametrize.is_parametrized(layer):
        _own_class(layer)
    method = type(delta)
    index = 1 + max((change.index for change in _changes(layer)), default=-1)
    if method.changes_weight:
        change = Change(delta, place.name, index, place.rows, of_bias=False)
        parametrize.register_parametrization(layer, "weight", change)
    if method.changes_bias and getattr(part, "bias", None) is not None:
        change = Change(delta, place.name, index, place.rows, of_bias=True)
        parametrize.register_parametrization(layer, "bias", change)
    # parametrize gave this layer a class of its own: replacing that class's forward touches no other layer, survives
    # a deepcopy, and goes away together with the parametrization.
    if type(layer).__bases__[0] in (nn.Linear, nn.Conv2d):
        type(layer).forward = _forward  # type: ignore[method-assign]


def attach_structural(model: nn.Module, settings: DeltaSettings) -> None:
    """Put one structural delta on a model, as its child ``structural_0``, ``structural_1`` and so on."""
    method = settings.component
    assert method is not None and issubclass(method, StructuralDelta)
    count = sum(isinstance(child, StructuralDelta) for child in model.children())
    like = next(model.parameters())
    delta = method(settings, model).to(like.device, like.dtype)
    delta.attach(model)
    model.add_module(f"structural_{count}", delta)


def layer_at(model: nn.Module, place: Target) -> nn.Module:
    """The layer of a place; the rows of a fused one as a Linear, for a delta to take its shapes and values from."""
    layer = model.get_submodule(place.layer)
    if place.rows is None:
        return layer
    assert isinstance(layer, nn.Linear)
    has_bias = layer.bias is not None
    part = nn.Linear(layer.in_features, place.rows[1] - place.rows[0], bias=has_bias, device="meta")
    part.weight = nn.Parameter(layer.weight.detach()[slice(*place.rows)], requires_grad=False)
    if has_bias:
        part.bias = nn.Parameter(layer.bias.detach()[slice(*place.rows)], requires_grad=False)
    return part


def deltas(model: nn.Module) -> list[Site]:
    """All deltas of a model, layer by layer in the model's order, then structural ones."""
    sites: dict[int, Site] = {}
    for module in model.modules():
        for change in sorted(_changes(module), key=lambda change: change.index):
            sites.setdefault(id(change.delta), Site(change.site, change.index, change.delta))
    for name, module in model.named_modules():
        if isinstance(module, StructuralDelta):
            sites[id(module)] = Site(name, 0, module)
    return list(sites.values())


def penalty(sites: Sequence[Site]) -> Tensor | None:
    """The sum of the deltas' penalties in fp32, or None where no delta asks for one."""
    device = next((parameter.device.type for site in sites for parameter in site.delta.parameters()), "cpu")
    with torch.autocast(device, enabled=False):
        terms = [term.float() for site in sites if (term := site.delta.penalty()) is not None]
    return torch.stack(terms).sum() if terms else None


def merge(model: nn.Module) -> None:
    """Replace every weight by its changed weight and remove the deltas, in place. Exact.

    Raises:
        DeltaError: the model carries a structural delta, which no weight can absorb.
    """
    for site in deltas(model):
        if isinstance(site.delta, StructuralDelta):
            raise DeltaError(
                f"{site.name!r} ({site.delta.settings.type}) is structural: it cannot be merged. Its delta file and "
                "its backbone are the model; a weight delta such as low_rank can be merged"
            )
    with torch.no_grad():
        for layer in [module for module in model.modules() if _changes(module)]:
            for change in _changes(layer):
                change.eval()  # a delta may be random while it is trained
            _own_class(layer)
            for name in list(_parametrizations(layer)):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


def _check_compatible(model: nn.Module, head: Sequence[str]) -> None:
    """Refuse deltas on a backbone that another delta lets no gradient into."""
    sites = [site for site in deltas(model) if not inside(site.name, head)]
    for site in sites:
        if isinstance(site.delta, StructuralDelta) and not site.delta.shares_backbone and len(sites) > 1:
            other = next(another for another in sites if another is not site)
            raise DeltaError(
                f"{site.delta.settings.type}: no gradient enters the backbone, so {other.delta.settings.type} at "
                f"{other.name!r} would not learn; leave one of them out (deltas of the classifier may stay)"
            )


def _add_everywhere(model: nn.Module, settings: DeltaSettings, head: Sequence[str]) -> None:
    for pattern, places in select(model, settings, head).items():
        refused = []
        for place in places:
            try:
                attach_delta(model, settings, place)
            except LayerRefused as refusal:
                refused.append(str(refusal))
        if refused and len(refused) == len(places):
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise DeltaError(f"pattern {pattern!r} finds no layer that can carry its delta: {refused[0]}{more}")
        if refused:
            log.info("%d of %d layers of %r passed over, e.g. %s", len(refused), len(places), pattern, refused[0])


def _fitting(method: type[WeightDelta], settings: DeltaSettings, layer: nn.Module) -> WeightDelta:
    """The delta of one layer, or a dense one in its place if it would be oversized and the settings allow that."""
    delta = method(settings, layer)
    own, size = tensor_bytes([layer.weight]), tensor_bytes(delta.state_dict().values())  # type: ignore[list-item]
    if not isinstance(settings, SizedSettings) or size < own:
        return delta
    if settings.oversized == "dense":
        return Dense(Dense.Settings(), layer)
    advice = "make it smaller (rank, density), set oversized: dense, or leave the layer out"
    kind = DeltaError if settings.oversized == "error" else LayerRefused
    raise kind(f"holds {own:,} bytes and its delta would hold {size:,}; {advice}")


def _parametrizations(layer: nn.Module) -> Any:
    """ "weight" and "bias" → their parametrizations; nothing for a layer without."""
    return getattr(layer, "parametrizations", {})


def _changes(layer: nn.Module) -> list[Change]:
    return [change for tensor in _parametrizations(layer).values() for change in tensor if isinstance(change, Change)]


def _own_class(layer: nn.Module) -> None:
    """Deep copies share the class that parametrize made: adding or removing a tensor in one would break the others."""
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    """A plain Linear's or Conv2d's forward: the cheap way while gradients are recorded, the definition otherwise."""
    tensors = _parametrizations(layer)
    if torch.is_grad_enabled() and "weight" in tensors and len(tensors["weight"]) == 1:
        change = tensors["weight"][0]
        bias_is_its_own = "bias" not in tensors or len(tensors["bias"]) == 1
        if change.rows is None and (bias_is_its_own or not change.delta.changes_bias):
            y = change.delta.output(layer, x)
            if y is not None:
                return y
    plain: Any = type(layer).__bases__[0]
    return plain.forward(layer, x)
