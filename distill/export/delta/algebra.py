"""Sums, multiples and compositions of delta files of one backbone.

``scale``, ``negate``, ``add``, ``subtract`` and ``interpolate`` compute with the changes of weights and biases;
``compose`` applies one file's deltas after the other's. ``compose`` is exact and needs no backbone; so are sums and
multiples of deltas that :mod:`distill.deltas.algebra` has a form for. Other layers (such as two DoRA deltas on one
layer) get a dense difference, as large as their weight, which needs the backbone; the result lists them and their
bytes.

The head is not a change, so heads are not summed. Equal heads are kept. ``interpolate`` interpolates heads for the same
labels. Otherwise the caller chooses ``head="first"`` or ``"second"``; labels, preprocessing and moved statistics come
from the same file. Measured results are left out.

All files must belong to one backbone: the same SHA-256 of all its tensors. Structural deltas are refused.

Papers: Ilharco et al., task arithmetic, arXiv 2212.04089; Wortsman et al., WiSE-FT, arXiv 2109.01903 (interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from distill.deltas.algebra import Chain, Link, added, compact, scaled
from distill.deltas.base import DeltaTensors
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.deltas.sites import layer_kind
from distill.export.checksummed import ExportError
from distill.export.delta.model import DeltaFile, by_layer, by_site, chain_bytes, change_of, layer_of
from distill.models.fingerprint import differences

Which = Literal["first", "second"]


def _check_finite(factor: float) -> None:
    if not math.isfinite(factor):
        raise ExportError(f"{factor} is no factor: expected a finite number")


class NeedsBackbone(ExportError):
    """The result has no exact form on some layers; with the backbone they can become dense differences."""


@dataclass(frozen=True)
class Combined:
    """The result of an operation."""

    file: DeltaFile
    made_by: str
    """The operation, with the SHA-256 of the files it was made from."""
    dense: Mapping[str, int] = field(default_factory=dict)
    """Site → bytes, for sites that became dense differences: exact up to rounding. All others are exact."""


def scale(file: DeltaFile, factor: float, backbone: nn.Module | None = None) -> Combined:
    """``factor · Δ``. The head stays as it is.

    Args:
        file: of weight deltas.
        factor: 1 leaves the change as it is, 0.5 halves it.
        backbone: the file's backbone; needed only where the result has no exact form.

    Returns:
        The result, not written yet.

    Raises:
        NeedsBackbone: a layer has no exact form for the result, and no backbone is given.
    """
    _check_finite(factor)
    return _combined([(file, factor)], f"scale {factor:g} of {_name(file)}", file, backbone)


def negate(file: DeltaFile, backbone: nn.Module | None = None) -> Combined:
    """``−Δ``: the opposite change. The head stays as it is. See :func:`scale`."""
    return _combined([(file, -1.0)], f"negate {_name(file)}", file, backbone)


def add(
    first: DeltaFile,
    second: DeltaFile,
    backbone: nn.Module | None = None,
    head: Which | None = None,
    factors: tuple[float, float] = (1.0, 1.0),
) -> Combined:
    """``f_1 · Δ_1 + f_2 · Δ_2``.

    Args:
        first: a file.
        second: another one, of the same backbone.
        backbone: the files' backbone; needed only where the result has no exact form.
        head: whose head to take, with labels, preprocessing and moved statistics; None: they must be equal.
        factors: ``f_1`` and ``f_2``.

    Returns:
        The result, not written yet.

    Raises:
        NeedsBackbone: a layer has no exact form for the result, and no backbone is given.
        ExportError: the files belong to different backbones, or their heads differ and ``head`` is None.
    """
    chosen = _choose(first, second, head)
    made_by = f"add {factors[0]:g} of {_name(first)} and {factors[1]:g} of {_name(second)}"
    return _combined([(first, factors[0]), (second, factors[1])], made_by, chosen, backbone)


def subtract(
    first: DeltaFile, second: DeltaFile, backbone: nn.Module | None = None, head: Which | None = None
) -> Combined:
    """``Δ_1 − Δ_2``.

    Args:
        first: a file.
        second: another one, of the same backbone.
        backbone: the files' backbone; needed only where the result has no exact form.
        head: whose head to take, with labels, preprocessing and moved statistics; None: they must be equal.

    Returns:
        The result, not written yet.

    Raises:
        NeedsBackbone: a layer has no exact form for the result, and no backbone is given.
        ExportError: the files belong to different backbones, or their heads differ and ``head`` is None.
    """
    return add(first, second, backbone, head, (1.0, -1.0))


def interpolate(
    first: DeltaFile, second: DeltaFile, t: float, backbone: nn.Module | None = None, head: Which | None = None
) -> Combined:
    """``(1 − t) · Δ_1 + t · Δ_2``; heads for the same labels are interpolated too.

    Args:
        first: a file.
        second: another one, of the same backbone.
        t: 0 is the first, 1 the second; below 0 or above 1 extrapolates.
        backbone: the files' backbone; needed only where the result has no exact form.
        head: whose head to take, with labels, preprocessing and moved statistics; None: interpolated.

    Returns:
        The result, not written yet.

    Raises:
        NeedsBackbone: a layer has no exact form for the result, and no backbone is given.
        ExportError: the files belong to different backbones, or their classes differ and ``head`` is None.
    """
    _check_finite(t)
    chosen = _choose(first, second, head, t)
    made_by = f"interpolate {t:g} of the way from {_name(first)} to {_name(second)}"
    return _combined([(first, 1 - t), (second, t)], made_by, chosen, backbone)


def compose(first: DeltaFile, second: DeltaFile, head: Which | None = None) -> Combined:
    """``W → d_2(d_1(W))``: the second file's deltas on the layers that the first has changed. Always exact.

    Args:
        first: a file.
        second: another one, of the same backbone.
        head: whose head to take, with labels, preprocessing and moved statistics; None: they must be equal.

    Returns:
        The result, not written yet.

    Raises:
        ExportError: the files belong to different backbones, or their heads differ and ``head`` is None.
    """
    chosen = _choose(first, second, head)
    layers = dict.fromkeys([*first.layers, *second.layers])
    chains = {layer: compact((*first.layers.get(layer, ()), *second.layers.get(layer, ()))) for layer in layers}
    return Combined(replace(chosen, layers=chains), f"compose {_name(first)}, then {_name(second)}")


def check_one_backbone(first: DeltaFile, second: DeltaFile) -> None:
    """Raise ``ExportError`` that lists what differs, unless both files belong to one backbone."""
    left, right = first.manifest, second.manifest
    lines = differences(left.backbone, right.backbone)
    if left.architecture != right.architecture:
        lines = [f"architecture is {right.architecture}, expected {left.architecture}"]
    if lines:
        more = [f"… and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise ExportError(
            f"the files belong to different backbones ({left.origin} and {right.origin}):\n  "
            + "\n  ".join(lines[:5] + more)
        )


def _combined(
    terms: Sequence[tuple[DeltaFile, float]], made_by: str, chosen: DeltaFile, backbone: nn.Module | None
) -> Combined:
    factors = [factor for _, factor in terms]
    return combined([file for file, _ in terms], lambda layer: factors, made_by, chosen, backbone)


def combined(
    files: Sequence[DeltaFile],
    factors: Callable[[str], Sequence[float]],
    made_by: str,
    chosen: DeltaFile,
    backbone: nn.Module | None,
) -> Combined:
    """``Σ_k f_k Δ_k`` with factors by layer.

    Args:
        files: of one backbone.
        factors: layer → f_k for each file.
        made_by: the operation, for the result and errors.
        chosen: the file that head, labels, preprocessing and moved statistics come from.
        backbone: needed only where the result has no exact form.

    Returns:
        The result, not written yet.

    Raises:
        NeedsBackbone: a layer has no exact form for the result, and no backbone is given.
    """
    chains: dict[str, Chain] = {}
    without: dict[str, list[tuple[Chain, float]]] = {}
    for site, parts in by_site(*files):
        own = zip(parts, factors(layer_of(site)), strict=True)
        used = [(chain, factor) for chain, factor in own if chain and factor]
        chain = _sum(used)
        chains[site] = chain or ()
        if chain is None:
            without[site] = used
    if without and backbone is None:
        names = ", ".join(f"{site} ({_types(used)})" for site, used in list(without.items())[:3])
        raise NeedsBackbone(
            f"{made_by}: {len(without)} layers have no form in which this is exact, e.g. {names}; give the backbone "
            "to make them dense differences, or merge the files and compare the models"
        )
    if backbone is not None:
        for site, used in without.items():
            chains[site] = _difference(backbone, site, used)
    dense = {site: chain_bytes(chains[site]) for site in without}
    return Combined(replace(chosen, layers=by_layer(chains)), made_by, dense)


def _sum(used: Sequence[tuple[Chain, float]]) -> Chain | None:
    total: Chain | None = ()
    for chain, factor in used:
        term = scaled(chain, factor)
        if term is None or total is None:
            return None
        total = added(total, term) if total else term
    return total


def _difference(backbone: nn.Module, site: str, used: Sequence[tuple[Chain, float]]) -> Chain:
    """``Σ f · Δ(W)`` as dense deltas."""
    total: dict[str, Tensor] = {}
    for chain, factor in used:
        for name, change in change_of(backbone, site, chain).items():
            total[name] = total[name] + factor * change if name in total else factor * change
    links = []
    if "weight" in total:
        if layer_kind(backbone.get_submodule(layer_of(site))) == "norm":
            raise ExportError(
                f"{site}: no delta can hold an arbitrary change of a norm's weight; merge the files instead"
            )
        links.append(Link(site, DeltaTensors(Dense.Settings(), {"D": total["weight"]})))
    if "bias" in total:
        links.append(Link(site, DeltaTensors(Bias.Settings(), {"shift": total["bias"]})))
    return tuple(links)


def _choose(first: DeltaFile, second: DeltaFile, head: Which | None, t: float | None = None) -> DeltaFile:
    """The file that head, labels, preprocessing and moved statistics come from."""
    check_one_backbone(first, second)
    if head is not None:
        return first if head == "first" else second
    a, b = first.values, second.values
    comparable = a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)
    same_labels = first.manifest.labels == second.manifest.labels
    if comparable and same_labels:
        if all(torch.equal(a[name], b[name]) for name in a):
            return first
        if t is not None:
            return replace(first, values={name: _between(a[name], b[name], t) for name in a})
    why = "differ" if comparable and same_labels else "are for different classes"
    raise ExportError(
        f"the heads of the two files {why}, and heads cannot be summed; choose head, first or second (--head)"
    )


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    return (1 - t) * a + t * b if a.is_floating_point() else (b if t > 0.5 else a)


def _types(used: Sequence[tuple[Chain, float]]) -> str:
    return " and ".join(" then ".join(link.learned.settings.type for link in chain) for chain, _ in used)


def _name(file: DeltaFile) -> str:
    return file.manifest.sha256
