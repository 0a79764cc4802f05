"""Fewer ranks: the best low-rank form of every additive change of a weight, to a rank or to a byte budget.

The additive deltas of a layer add up to one change Δ, seen as [groups, out/g, in/g · kh · kw]. Its singular value
decomposition ``Δ = U Σ Vᵀ`` (per group) gives the nearest change of rank r, ``B = U_r √Σ_r``, ``A = √Σ_r V_rᵀ``: its
squared error is ``Σ_{i>r} σ_i²`` (Eckart and Young).

A **budget** counts the bytes of the deltas' own numbers in fp32: not the head, not names, not ``delta.json``.
Directions of all layers compete by ``σ² / bytes``, the best choice for the error of the weights; what that does to the
logits is to be measured. Deltas that are not additive (scale and shift, DoRA, …), or change no matrix (bias, norms),
stay as they are and are paid for first.

A layer whose deltas hold fewer bytes than their truncation keeps them, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distill.deltas.algebra import Chain, Link, compact
from distill.deltas.allocate import Candidate, within_budget
from distill.deltas.base import DeltaError, DeltaTensors
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import layer_kind
from distill.export.checksummed import ExportError
from distill.export.delta.model import DeltaFile, by_layer, chain_bytes, change_of, layer_of, places


@dataclass(frozen=True)
class Truncated:
    """The result of ``truncate``."""

    file: DeltaFile
    made_by: str
    ranks: Mapping[str, int]
    """Site → rank, 0 where nothing is left; sites without ranks are not named."""
    kept: float
    """Share of the squared change of the weights that is left, over the sites that could be truncated."""


@dataclass(frozen=True)
class _Spectrum:
    """A change in its own directions: ``Δ = B A``, per group, most important direction first."""

    place: str
    run: Chain
    """The deltas that it is the sum of."""
    squares: Tensor
    """σ² [n], summed over groups."""
    A: Tensor
    B: Tensor
    most: int
    """The largest rank that is smaller than the layer itself."""

    @property
    def cost(self) -> int:
        """Bytes of one direction."""
        return (self.A[:, 0].numel() + self.B[..., 0].numel()) * self.A.element_size()

    def cut(self, rank: int) -> Chain:
        if rank == 0:
            return ()
        settings = LowRank.Settings(rank=rank)
        tensors = {"A": self.A[:, :rank].contiguous(), "B": self.B[..., :rank].contiguous()}
        return (Link(self.place, DeltaTensors(settings, tensors)),)


def truncate(file: DeltaFile, skeleton: nn.Module, *, rank: int | None = None, budget: int | None = None) -> Truncated:
    """At most ``rank`` directions a site, or as many in all as ``budget`` bytes pay for.

    Args:
        skeleton: a model of the file's architecture, for shapes; its values do not matter.

    Raises:
        ExportError: neither or both are given, or the budget is too small; the text says what the smallest is.
    """
    if (rank is None) == (budget is None):
        raise ExportError("truncate to a rank or to a budget, one of the two")
    chains: dict[str, list[Chain | _Spectrum]] = {
        place: list(_parts(skeleton, place, chain)) for place, (chain,) in places(file)
    }
    spectra = [part for parts in chains.values() for part in parts if isinstance(part, _Spectrum)]
    if rank is not None:
        if rank < 1:
            raise ExportError(f"rank {rank}: expected at least 1")
        ranks = [min(rank, len(spectrum.squares)) for spectrum in spectra]
        goal = f"rank {rank}"
    else:
        assert budget is not None
        fixed = sum(chain_bytes(part) for parts in chains.values() for part in parts if isinstance(part, tuple))
        ranks = _spend(spectra, budget, fixed)
        goal = f"{budget} bytes"
    whole = left = 0.0
    new: dict[int, Chain] = {}
    told: dict[str, int] = {}
    for spectrum, wanted in zip(spectra, ranks):
        keep = chain_bytes(spectrum.run) <= wanted * spectrum.cost
        new[id(spectrum)] = spectrum.run if keep else spectrum.cut(wanted)
        told[spectrum.place] = len(spectrum.squares) if keep else wanted
        whole += float(spectrum.squares.sum())
        left += float(spectrum.squares.sum() if keep else spectrum.squares[:wanted].sum())
    rebuilt = {
        place: tuple(link for part in parts for link in (new[id(part)] if isinstance(part, _Spectrum) else part))
        for place, parts in chains.items()
    }
    made_by = f"truncate {file.manifest.sha256} to {goal}"
    return Truncated(replace(file, layers=by_layer(rebuilt)), made_by, told, left / whole if whole else 1.0)


def _spend(spectra: list[_Spectrum], budget: int, fixed: int) -> list[int]:
    """A rank for each; ``fixed`` bytes go to what has no ranks."""
    if fixed >= budget:
        raise ExportError(f"the budget is too small: deltas without ranks alone take {fixed:,} bytes")
    offers = {
        str(n): Candidate(spectrum.squares, spectrum.cost, most=spectrum.most) for n, spectrum in enumerate(spectra)
    }
    try:
        return list(within_budget(offers, budget - fixed).values()) if offers else []
    except DeltaError as error:
        also = f" ({fixed:,} bytes more go to deltas without ranks)" if fixed else ""
        smallest = min(spectrum.cost for spectrum in spectra)
        raise ExportError(f"the budget is too small: one rank takes at least {smallest:,} bytes{also}") from error


def _parts(skeleton: nn.Module, place: str, chain: Chain) -> Iterator[Chain | _Spectrum]:
    """The chain cut into what stays and what can be truncated, in order."""
    run: list[Link] = []
    for link in chain:
        if link.method.additive:
            run.append(link)
            continue
        yield from _run(skeleton, place, tuple(run))
        yield (link,)
        run = []
    yield from _run(skeleton, place, tuple(run))


def _run(skeleton: nn.Module, place: str, run: Chain) -> Iterator[Chain | _Spectrum]:
    matrices = tuple(link for link in run if link.method.changes_weight and not link.method.changes_bias)
    others = tuple(link for link in run if link not in matrices)
    layer = skeleton.get_submodule(layer_of(place))
    if others:
        yield others
    if not matrices:
        return
    if layer_kind(layer) == "norm":
        yield matrices
        return
    run = compact(matrices)
    yield (_spectrum(skeleton, place, run) or run) if run else ()


def _spectrum(skeleton: nn.Module, place: str, chain: Chain) -> _Spectrum | None:
    """None where not even one direction is smaller than the layer: depthwise convs."""
    first = chain[0].learned
    if len(chain) == 1 and chain[0].method is LowRank and "A" in first.tensors:
        settings = first.settings
        assert isinstance(settings, LowRank.Settings)
        factor = 1.0 if settings.alpha is None else settings.alpha / settings.rank
        B, A = first.tensors["B"].double() * factor, first.tensors["A"].double()
        left, over_left = torch.linalg.qr(B)
        right, over_right = torch.linalg.qr(A.mT)
        U, sigma, V = torch.linalg.svd(over_left @ over_right.mT, full_matrices=False)
        U, V = left @ U, V @ right.mT
    else:
        change = change_of(skeleton, place, chain)["weight"]
        groups: int = getattr(skeleton.get_submodule(layer_of(place)), "groups", 1)
        U, sigma, V = torch.linalg.svd(change.double().reshape(groups, len(change) // groups, -1), full_matrices=False)
    root = sigma.sqrt()
    A, B = (root[..., None] * V).float(), (U * root[:, None]).float()
    squares = sigma.square().sum(0)
    whole = A.shape[0] * B.shape[1] * A.shape[2]
    most = (whole - 1) // (A[:, 0].numel() + B[..., 0].numel())
    # Directions below the rounding of the largest are noise of the decomposition.
    rank = int((sigma > sigma.amax() * max(A.shape[2], B.shape[1]) * torch.finfo(torch.float64).eps).any(0).sum())
    if most == 0 or rank == 0:
        return None
    return _Spectrum(place, chain, squares[:rank], A[:, :rank], B[..., :rank], most)
