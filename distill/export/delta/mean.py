"""Means of several delta files of one backbone: weighted by layer, and TIES.

Heads are not changes: the result has the values (head, moved statistics) of the last file, for the caller to replace.

Shape suffixes: K files, P entries of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distill.deltas.algebra import Link
from distill.deltas.base import DeltaTensors
from distill.deltas.bias import Bias
from distill.deltas.dense import Dense
from distill.export.delta.algebra import Combined, check_one_backbone, combined
from distill.export.delta.model import DeltaFile, by_layer, by_site, chain_bytes, change_of


def mean(
    files: Sequence[DeltaFile], backbone: nn.Module | None = None, weights: Sequence[Mapping[str, float]] | None = None
) -> Combined:
    """``Σ_k w_k Δ_k / Σ_k w_k`` in every layer; exact, and of as many bytes as all files, where the methods allow it.

    Args:
        files: of one backbone, one or more.
        backbone: theirs; needed only where the result has no exact form.
        weights: for each file, layer → w ≥ 0 (a layer that is left out has 0); None: all equal. A layer in which all
            are 0 has equal weights.

    Returns:
        The result, not written yet.

    Raises:
        NeedsBackbone: a layer has no exact form for the result, and no backbone is given.
        ExportError: the files belong to different backbones.
    """
    for other in files[1:]:
        check_one_backbone(files[0], other)
    equal = 1 / len(files)

    def factors(layer: str) -> list[float]:
        own = [equal] * len(files) if weights is None else [of_file.get(layer, 0.0) for of_file in weights]
        total = sum(own)
        return [weight / total for weight in own] if total > 0 else [equal] * len(files)

    made_by = f"mean of {', '.join(file.manifest.sha256 for file in files)}"
    return combined(files, factors, made_by, files[-1], backbone)


def ties(files: Sequence[DeltaFile], backbone: nn.Module, density: float = 0.2) -> Combined:
    """TIES: of each change the largest entries, of these the mean of those with the sign that has the larger sum.

    The result is dense: as large as the changed weights. Paper: Yadav et al., TIES-Merging, arXiv 2306.01708, which
    multiplies the result by a factor that it chooses on held-out images; here it is 1. It keeps the largest entries of
    a whole task's change; here each layer keeps its own, so that a layer with small changes is not left out.

    Args:
        files: of one backbone, one or more.
        backbone: theirs.
        density: fraction of the entries of a file's change in a layer that is kept, in (0, 1].

    Returns:
        The result, not written yet.

    Raises:
        ExportError: the files belong to different backbones.
    """
    for other in files[1:]:
        check_one_backbone(files[0], other)
    chains, dense = {}, {}
    for site, parts in by_site(*files):
        changes = [change_of(backbone, site, chain) if chain else {} for chain in parts]
        links = []
        for name, settings, key in (("weight", Dense.Settings(), "D"), ("bias", Bias.Settings(), "shift")):
            own = [change[name] for change in changes if name in change]
            if own:
                links.append(Link(site, DeltaTensors(settings, {key: ties_mean(torch.stack(own), density)})))
        chains[site] = tuple(links)
        dense[site] = chain_bytes(chains[site])
    made_by = f"TIES, density {density:g}, of {', '.join(file.manifest.sha256 for file in files)}"
    return Combined(replace(files[-1], layers=by_layer(chains)), made_by, dense)


def ties_mean(changes_KP: Tensor, density: float) -> Tensor:
    """TIES of K changes of one tensor.

    Args:
        changes_KP: [K, ...].
        density: fraction of the entries of each change that is kept, rounded up.

    Returns:
        [...], zero where no entry is kept.
    """
    flat_KP = changes_KP.flatten(1)
    keep = max(1, -int(-density * flat_KP.shape[1] // 1))
    largest_KP = torch.zeros_like(flat_KP).scatter(1, flat_KP.abs().topk(keep).indices, 1.0)
    trimmed_KP = flat_KP * largest_KP
    sign_P = trimmed_KP.sum(0).sign()
    agrees_KP = (trimmed_KP.sign() == sign_P) & (trimmed_KP != 0)
    mean_P = (trimmed_KP * agrees_KP).sum(0) / agrees_KP.sum(0).clamp(min=1)
    return mean_P.view_as(changes_KP[0])
