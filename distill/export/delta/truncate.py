"""Truncation: the best low-rank approximation of every additive change of a weight, to a rank or to a byte budget.

The additive deltas of a layer add up to one change Δ, reshaped to [groups, out/g, in/g · kh · kw]. Its singular value
decomposition ``Δ = U Σ Vᵀ`` (per group) gives the nearest change of rank r, ``B = U_r √Σ_r``, ``A = √Σ_r V_rᵀ``: its
squared error is ``Σ_{i>r} σ_i²`` (Eckart and Young).

A **budget** counts the bytes of the deltas' tensors in fp32: not the head, not names, not ``delta.json``. It is used
for the ranks of all layers with the largest ``σ² / bytes``, which minimizes the error of the weights, not of the
logits: measure those. Deltas that are not additive (scale and shift, DoRA, …), or change no matrix (bias, norms), stay
as they are, and their bytes are taken off the budget first.

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
from distill.export.delta.model import DeltaFile, by_layer, by_site, chain_bytes, change_of, layer_of


@dataclass(frozen=True)
class Truncated:
    """The result of ``truncate``."""

    file: DeltaFile
    made_by: str
    ranks: Mapping[str, int]
    """Site → rank, 0 where nothing is left; without sites that have no rank."""
    kept: float
    """Fraction of the squared change of the weights that is left, over the sites that have a rank."""


@dataclass(frozen=True)
class _Spectrum:
    """The singular value decomposition of a change: ``Δ = B A``, per group, largest singular value first."""

    site: str
    run: Chain
    """The deltas whose sum the change is."""
    squares: Tensor
    """σ² [n], summed over groups."""
    A: Tensor
    B: Tensor
    most: int
    """The largest rank that is smaller than the layer itself."""

    @property
    def cost(self) -> int:
        """Bytes of one rank."""
        return (self.A[:, 0].numel() + self.B[..., 0].numel()) * self.A.element_size()

    def cut(self, rank: int) -> Chain:
        """The nearest change of a rank, as a low-rank delta; none for rank 0."""
        if rank == 0:
            return ()
        settings = LowRank.Settings(rank=rank)
        tensors = {"A": self.A[:, :rank].contiguous(), "B": self.B[..., :rank].contiguous()}
        return (Link(self.site, DeltaTensors(settings, tensors)),)


def truncate(file: DeltaFile, skeleton: nn.Module, *, rank: int | None = None, budget: int | None = None) -> Truncated:
    """Truncate the additive deltas of a file.

    Args:
        file: of weight deltas.
        skeleton: a model of the file's architecture, for shapes; its values do not matter.
        rank: largest rank per site.
        budget: bytes of all deltas' tensors in fp32; give this or ``rank``.

    Returns:
        The result, not written yet.

    Raises:
        ExportError: neither or both are given, or the budget is too small; the text gives the smallest.
    """
    if (rank is None) == (budget is None):
        raise ExportError("expected a rank or a budget, one of the two")
    chains: dict[str, list[Chain | _Spectrum]] = {
        site: list(_parts(skeleton, site, chain)) for site, (chain,) in by_site(file)
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
    ranks_of_sites: dict[str, int] = {}
    for spectrum, chosen in zip(spectra, ranks):
        keep = chain_bytes(spectrum.run) <= chosen * spectrum.cost
        new[id(spectrum)] = spectrum.run if keep else spectrum.cut(chosen)
        ranks_of_sites[spectrum.site] = len(spectrum.squares) if keep else chosen
        whole += float(spectrum.squares.sum())
        left += float(spectrum.squares.sum() if keep else spectrum.squares[:chosen].sum())
    rebuilt = {
        site: tuple(link for part in parts for link in (new[id(part)] if isinstance(part, _Spectrum) else part))
        for site, parts in chains.items()
    }
    made_by = f"truncate {file.manifest.sha256} to {goal}"
    return Truncated(replace(file, layers=by_layer(rebuilt)), made_by, ranks_of_sites, left / whole if whole else 1.0)


def _spend(spectra: list[_Spectrum], budget: int, fixed: int) -> list[int]:
    """A rank for each spectrum; ``fixed`` bytes of the budget go to deltas without ranks."""
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


def _parts(skeleton: nn.Module, site: str, chain: Chain) -> Iterator[Chain | _Spectrum]:
    """The chain, split in order into parts that stay and spectra of what can be truncated."""
    run: list[Link] = []
    for link in chain:
        if link.method.additive:
            run.append(link)
            continue
        yield from _run(skeleton, site, tuple(run))
        yield (link,)
        run = []
    yield from _run(skeleton, site, tuple(run))


def _run(skeleton: nn.Module, site: str, run: Chain) -> Iterator[Chain | _Spectrum]:
    matrices = tuple(link for link in run if link.method.changes_weight and not link.method.changes_bias)
    others = tuple(link for link in run if link not in matrices)
    layer = skeleton.get_submodule(layer_of(site))
    if others:
        yield others
    if not matrices:
        return
    if layer_kind(layer) == "norm":
        yield matrices
        return
    run = compact(matrices)
    yield (_spectrum(skeleton, site, run) or run) if run else ()


def _spectrum(skeleton: nn.Module, site: str, chain: Chain) -> _Spectrum | None:
    """None if rank 1 takes as many bytes as the layer itself (depthwise convs)."""
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
        change = change_of(skeleton, site, chain)["weight"]
        groups: int = getattr(skeleton.get_submodule(layer_of(site)), "groups", 1)
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
    return _Spectrum(site, chain, squares[:rank], A[:, :rank], B[..., :rank], most)
