"""Truncation: the best low-rank approximation of the change of every weight, to a rank or to a byte budget.

The additive deltas of a layer add up to one change Δ, reshaped to [groups, out/g, in/g · kh · kw]. Its singular value
decomposition ``Δ = U Σ Vᵀ`` (per group) gives the nearest change of rank r, ``B = U_r √Σ_r``, ``A = √Σ_r V_rᵀ``: its
squared error is ``Σ_{i>r} σ_i²`` (Eckart and Young).

A delta that is not additive but has a low-rank product in it (HALRP's ``K2 K1``, DoRA's ``B A``) keeps its other
tensors, and its product is truncated in the same way, to rank 1 at least. Where each entry of the product is added to
several entries of the weight, its σ² count as often.

A **budget** counts the bytes of the deltas' tensors in fp32: not the head, not names, not ``delta.json``. It is used
for the ranks of all layers with the largest ``σ² / bytes``, which minimizes the error of the weights, not of the
logits: measure those. Other deltas (scale and shift, the delta rule, …), and those that change no matrix (bias,
norms), stay as they are, and their bytes are taken off the budget first.

A layer whose deltas hold fewer bytes than their truncation keeps them, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distill.deltas.adalora import AdaLoRA
from distill.deltas.algebra import Chain, Link, compact
from distill.deltas.allocate import Candidate, within_budget
from distill.deltas.base import Delta, DeltaError, DeltaSettings, DeltaTensors, WeightDelta
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import find_target, layer_kind
from distill.export.checksummed import ExportError
from distill.export.delta.model import DeltaFile, by_layer, by_site, chain_bytes, change_of, layer_of


def can_truncate(method: type[Delta]) -> bool:
    """Whether the deltas of a method can be truncated, in the form in which they are exported."""
    if issubclass(method, AdaLoRA):
        return True  # exported as low rank
    if not issubclass(method, WeightDelta):
        return False
    return method.product is not None or (method.additive and method.changes_weight and not method.changes_bias)


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
    """The deltas whose sum the change is, or the one delta whose product it is."""
    squares: Tensor
    """σ² [n], summed over groups."""
    A: Tensor
    B: Tensor
    most: int
    """The largest rank that is smaller than the layer itself."""
    least: int = 0
    """The smallest rank: 1 for a delta that has more than a product."""
    fixed: int = 0
    """Bytes of the delta's other tensors."""

    @property
    def cost(self) -> int:
        """Bytes of one rank."""
        return (self.A[:, 0].numel() + self.B[..., 0].numel()) * self.A.element_size()

    def cut(self, rank: int) -> Chain:
        """The nearest change of a rank, as a low-rank delta; none for rank 0. Of a product, the delta around it."""
        if rank == 0:
            return ()
        A, B = self.A[:, :rank].contiguous(), self.B[..., :rank].contiguous()
        if not self.least:
            return (Link(self.site, DeltaTensors(LowRank.Settings(rank=rank), {"A": A, "B": B})),)
        (link,) = self.run
        assert link.method.product is not None
        tensors = {**link.learned.tensors, **dict(zip(link.method.product, (B, A)))}
        return (Link(self.site, DeltaTensors(_unscaled(link.learned.settings, rank), tensors)),)


def truncate(file: DeltaFile, skeleton: nn.Module, *, rank: int | None = None, budget: int | None = None) -> Truncated:
    """Truncate the deltas of a file that are additive or have a product.

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
        keep = chain_bytes(spectrum.run) <= spectrum.fixed + chosen * spectrum.cost
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
        str(n): Candidate(each.squares, each.cost, each.fixed, each.least, each.most) for n, each in enumerate(spectra)
    }
    try:
        return list(within_budget(offers, budget - fixed).values()) if offers else []
    except DeltaError as error:
        also = f" ({fixed:,} bytes more go to deltas without ranks)" if fixed else ""
        smallest = sum(offer.bytes(offer.least) for offer in offers.values())
        what = f"the smallest ranks take {smallest:,} bytes"
        if not smallest:
            what = f"one rank takes at least {min(offer.bytes(1) for offer in offers.values()):,} bytes"
        raise ExportError(f"the budget is too small: {what}{also}") from error


def _parts(skeleton: nn.Module, site: str, chain: Chain) -> Iterator[Chain | _Spectrum]:
    """The chain, split in order into parts that stay and spectra of what can be truncated."""
    run: list[Link] = []
    for link in chain:
        if link.method.additive:
            run.append(link)
            continue
        yield from _run(skeleton, site, tuple(run))
        yield _product(skeleton, link) or (link,)
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
    if len(chain) == 1 and chain[0].method.product is not None:
        U, sigma, V = _of_product(chain[0])
    else:
        change = change_of(skeleton, site, chain)["weight"]
        groups: int = getattr(skeleton.get_submodule(layer_of(site)), "groups", 1)
        U, sigma, V = torch.linalg.svd(change.double().reshape(groups, len(change) // groups, -1), full_matrices=False)
    squares, A, B = _balanced(U, sigma, V)
    whole = A.shape[0] * B.shape[1] * A.shape[2]
    most = (whole - 1) // (A[:, 0].numel() + B[..., 0].numel())
    if most == 0 or not len(squares):
        return None
    return _Spectrum(site, chain, squares, A, B, most)


def _product(skeleton: nn.Module, link: Link) -> _Spectrum | None:
    """The product in a delta that is not additive; None if it has none, or if it is zero."""
    if link.method.product is None:
        return None
    U, sigma, V = _of_product(link)
    squares, A, B = _balanced(U, sigma, V)
    if not len(squares):
        return None
    rows = find_target(skeleton, link.site).rows
    weight: Tensor = skeleton.get_submodule(layer_of(link.site)).weight  # type: ignore[assignment]
    entries = (weight if rows is None else weight[slice(*rows)]).numel()
    window = entries // (A.shape[0] * B.shape[1] * A.shape[2])
    tensors = link.learned.tensors
    fixed = sum(t.numel() * t.element_size() for name, t in tensors.items() if name not in link.method.product)
    return _Spectrum(link.site, (link,), squares * window, A, B, len(squares), least=1, fixed=fixed)


def _of_product(link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of a delta's product, from its factors, with the delta's scale."""
    assert link.method.product is not None
    B, A = (link.learned.tensors[name].double() for name in link.method.product)
    left, over_left = torch.linalg.qr(B * _scale(link.learned.settings))
    right, over_right = torch.linalg.qr(A.mT)
    U, sigma, V = torch.linalg.svd(over_left @ over_right.mT, full_matrices=False)
    return left @ U, sigma, V @ right.mT


def _balanced(U: Tensor, sigma: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """σ² summed over groups, ``√Σ V`` and ``U √Σ``, without what is below the rounding of the largest."""
    # Directions below the rounding of the largest are noise of the decomposition.
    rank = int((sigma > sigma.amax() * max(V.shape[2], U.shape[1]) * torch.finfo(torch.float64).eps).any(0).sum())
    root = sigma.sqrt()
    A, B = (root[..., None] * V).float(), (U * root[:, None]).float()
    return sigma.square().sum(0)[:rank], A[:, :rank], B[..., :rank]


def _scale(settings: DeltaSettings) -> float:
    """What a delta multiplies its product by."""
    if isinstance(settings, LowRank.Settings) and settings.alpha is not None:
        return settings.alpha / settings.rank
    return 1.0


def _unscaled(settings: DeltaSettings, rank: int) -> DeltaSettings:
    """The settings with another rank, and a product that is multiplied by 1."""
    changed: dict[str, object] = {"rank": rank}
    if isinstance(settings, LowRank.Settings):
        changed["alpha"] = None
    return settings.model_copy(update=changed)
