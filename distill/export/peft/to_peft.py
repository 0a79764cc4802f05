"""A delta file as a peft adapter.

=================  ====================================================================================================
ours               peft's
=================  ====================================================================================================
``low_rank``       LoRA: ``lora_A``, ``lora_B``, with the rank and alpha of each layer. Several on one layer, and those
                   of q, k and v of a fused projection, become one with the sum of their ranks, the blocks of B in their
                   rows. A conv of g groups (``expand``): A is a whole conv, zero outside the blocks, of rank g · r.
``dora``           DoRA: m = (1 + magnitude) ‖W‖, which needs the backbone; rows without a delta have m = ‖W‖.
``ia3``            IA3: the factor 1 + s; ``side: input`` is ``feedforward_modules``.
``bias``           beside LoRA or DoRA: the layer's whole bias, which needs the backbone.
head               ``modules_to_save``
=================  ====================================================================================================

An adapter is of one kind, so a file that mixes low_rank, dora and ia3 is refused, as are all other kinds, and moved
batch-norm statistics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.deltas.algebra import Chain, Link
from distill.deltas.dora import DoRA
from distill.deltas.ia3 import IA3
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names, find_target, inside
from distill.export.card import hub_name
from distill.export.checksummed import ExportError
from distill.export.delta.model import DeltaFile
from distill.export.peft.files import PeftAdapter
from distill.export.peft.layers import refusal, row_lengths

KINDS = ("low_rank", "dora", "ia3")


class NeedsValues(ExportError):
    """The adapter has values that depend on the backbone's weights."""


def to_peft(file: DeltaFile, model: nn.Module, knows_values: bool, expand: bool = False) -> PeftAdapter:
    """The adapter whose change of the backbone is that of a delta file.

    Args:
        file: of low_rank, dora or ia3 deltas.
        model: of the file's architecture and number of classes.
        knows_values: whether it has the weights of the file's backbone.
        expand: whether the factor A of a grouped conv may become a whole conv.

    Returns:
        The adapter.

    Raises:
        NeedsValues: dora or bias deltas, and ``knows_values`` is false.
        ExportError: layers or kinds of deltas that peft has no form for; the text names them.
    """
    kind = _kind(file, model)
    head = classifier_names(model)
    problems, tensors, ranks, feedforward, targets = [], {}, {}, [], []
    has_bias = False
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    for name, chain in sorted(file.layers.items(), key=lambda item: order[item[0]]):
        layer = model.get_submodule(name)
        main = tuple(link for link in chain if type_of(link) != "bias")
        if main:
            reason = refusal(layer, expand, kind) or _refused(main)
            if inside(name, head):
                reason = "is the classifier, which peft saves whole"
            elif any(name.endswith(own) or re.match(rf"(.*\.)?{own}(\.|$)", name) for own in head):
                reason = f"has a name that peft takes for the classifier {' or '.join(head)}"
            if reason:
                problems.append(f"{name} {reason}")
                continue
            targets.append(name)
        if kind == "ia3":
            if _side(main) == "input":
                feedforward.append(name)
            tensors[f"{name}.ia3_l"] = _factors(model, layer, main)
        elif main:
            own, rank, alpha = _low_rank(model, layer, main)
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
            ranks[name] = (rank, alpha)
        if len(main) < len(chain):
            has_bias = True
            tensors[f"{name}.{'base_layer.' if main else ''}bias"] = _bias(model, layer, chain)
    if problems:
        raise ExportError(f"peft has no form for {len(problems)} layers of this file:\n  " + "\n  ".join(problems[:20]))
    if not knows_values and any(type_of(link) in ("dora", "bias") for chain in file.layers.values() for link in chain):
        raise NeedsValues("dora and bias deltas become numbers that depend on the backbone's weights")
    tensors |= {key.removeprefix("head/"): tensor for key, tensor in file.values.items()}
    config: dict[str, Any] = {
        "base_model_name_or_path": hub_name(file.manifest.origin),
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": list(head) or None,
        "peft_type": "IA3" if kind == "ia3" else "LORA",
        "target_modules": _exactly(targets, model),
        "task_type": None,
    }
    if kind == "ia3":
        both = isinstance(config["target_modules"], str)
        config |= {"feedforward_modules": (_pattern(feedforward) if both else feedforward), "init_ia3_weights": True}
        return PeftAdapter(config, tensors)
    (rank, alpha), *_ = ranks.values()
    others = {f"^{re.escape(name)}": own for name, own in ranks.items() if own != (rank, alpha)}
    biases = "none" if not has_bias else "lora_only" if _all_targets(file, targets) else "all"
    config |= {
        "alpha_pattern": {name: own[1] for name, own in others.items()},
        "bias": biases,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "r": rank,
        "rank_pattern": {name: own[0] for name, own in others.items()},
        "use_dora": kind == "dora",
        "use_rslora": False,
    }
    return PeftAdapter(config, tensors)


def type_of(link: Link) -> str:
    return str(link.learned.settings.type)


def _kind(file: DeltaFile, model: nn.Module) -> str:
    """The kind of the adapter. Raises if deltas have none, or several."""
    sites: dict[str, list[str]] = {}
    for chain in file.layers.values():
        for link in chain:
            sites.setdefault(type_of(link), []).append(link.site)
    kinds = [kind for kind in KINDS if kind in sites]
    allowed = {*kinds, *(["bias"] if "ia3" not in kinds and kinds else [])}
    foreign = {kind: names for kind, names in sites.items() if kind not in allowed}
    if foreign or not kinds:
        names = "; ".join(f"{kind} at {_some(names)}" for kind, names in foreign.items()) or "a head without deltas"
        raise ExportError(f"peft has no form for {names}: it has one for {', '.join(KINDS)}, and bias beside low rank")
    if len(kinds) > 1:
        names = "; ".join(f"{kind} at {_some(sites[kind])}" for kind in kinds)
        raise ExportError(f"an adapter of peft is of one kind, and this file has {names}")
    moved = sorted({name.removeprefix("moved/").rpartition(".")[0] for name in file.values if name.startswith("moved")})
    if moved:
        raise ExportError(f"peft has no form for moved batch-norm statistics, which this file has at {_some(moved)}")
    if file.manifest.head is not None:
        raise ExportError(f"peft has no form for the reused head of this file: {' and '.join(classifier_names(model))}")
    return kinds[0]


def _refused(chain: Chain) -> str:
    """Why deltas of one layer cannot be one of peft's; empty if they can."""
    kind = type_of(chain[0])
    sites = [link.site for link in chain]
    whole = any("[" not in site for site in sites)
    overlap = len(set(sites)) < len(sites) or (whole and len(sites) > 1)
    if kind == "dora" and overlap:
        return "has several dora deltas on the same rows"
    if kind == "ia3":
        sides = {link.learned.settings.side for link in chain}  # type: ignore[attr-defined]
        if len(sides) > 1:
            return "has ia3 deltas on its input and its output"
        if sides == {"input"} and any("[" in site for site in sites):
            return "has ia3 on the input of a part of its rows"
    return ""


def _low_rank(model: nn.Module, layer: nn.Module, chain: Chain) -> tuple[dict[str, Tensor], int, float]:
    """The tensors of one LoRA for all deltas of a layer, its rank and its alpha."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups: int = getattr(layer, "groups", 1)
    out = weight.shape[0]
    scales = []
    for link in chain:
        settings: Any = link.learned.settings
        assert isinstance(settings, LowRank.Settings)
        scales.append(1.0 if settings.alpha is None else settings.alpha / settings.rank)
    same = len(set(scales)) == 1
    As, Bs = [], []
    for link, scale in zip(chain, scales):
        A, B = link.learned.tensors["A"], link.learned.tensors["B"]
        rows = find_target(model, link.site).rows
        if rows is not None:
            B = torch.zeros(1, out, B.shape[2], dtype=B.dtype).index_copy_(1, torch.arange(*rows), B)
        As.append(A)
        Bs.append(B if same else B * scale)
    A, B = torch.cat(As, 1), torch.cat(Bs, 2)
    rank = groups * A.shape[1]
    if groups > 1:  # peft's A sees all channels, and its B is grouped
        blocks = A.new_zeros(groups, A.shape[1], groups, A.shape[2])
        blocks[torch.arange(groups), :, torch.arange(groups)] = A
        A = blocks
    window = weight.shape[2:]
    ones = (1,) * len(window)
    tensors = {
        "lora_A.weight": A.reshape(rank, -1, *window),
        "lora_B.weight": B.reshape(out, rank // groups, *ones),
    }
    settings = chain[0].learned.settings
    if isinstance(settings, DoRA.Settings):
        magnitude = row_lengths(weight)
        for link in chain:
            rows = find_target(model, link.site).rows or (0, out)
            magnitude[slice(*rows)] *= 1 + link.learned.tensors["magnitude"].double()
        shape = (1, out, *ones) if window else (out,)
        tensors["lora_magnitude_vector"] = magnitude.float().reshape(shape)
    scale = scales[0] if same else 1.0
    unsliced = len(chain) == 1 and groups == 1
    own: Any = settings
    alpha = float(own.alpha) if unsliced and own.alpha is not None else scale * rank
    return tensors, rank, alpha


def _side(chain: Chain) -> str:
    settings: Any = chain[0].learned.settings
    assert isinstance(settings, IA3.Settings)
    return settings.side


def _factors(model: nn.Module, layer: nn.Module, chain: Chain) -> Tensor:
    """The factors of all ia3 deltas of a layer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    count = weight.shape[0] if _side(chain) == "output" else weight.shape[1] * getattr(layer, "groups", 1)
    factors = torch.ones(count, dtype=torch.float64)
    for link in chain:
        rows = find_target(model, link.site).rows or (0, count)
        factors[slice(*rows)] *= 1 + link.learned.tensors["scale"].double()
    if weight.ndim > 2:
        return factors.float().reshape(1, count, *(1,) * (weight.ndim - 2))
    return factors.float().reshape((-1, 1) if _side(chain) == "output" else (1, -1))


def _bias(model: nn.Module, layer: nn.Module, chain: Chain) -> Tensor:
    """A layer's bias with its bias deltas."""
    bias: Tensor = layer.bias.detach().clone()  # type: ignore[operator, union-attr]
    for link in chain:
        if type_of(link) == "bias":
            bias[slice(*(find_target(model, link.site).rows or (0, len(bias))))] += link.learned.tensors["shift"]
    return bias


def _all_targets(file: DeltaFile, targets: Sequence[str]) -> bool:
    return all(name in targets for name in file.layers)


def _exactly(names: Sequence[str], model: nn.Module) -> list[str] | str:
    """``target_modules`` for exactly these layers: their names, or a pattern if one is the end of another's name."""
    everything = [name for name, _ in model.named_modules()]
    ambiguous = any(other.endswith(f".{name}") for name in names for other in everything)
    return _pattern(names) if ambiguous else list(names)


def _pattern(names: Sequence[str]) -> str:
    return "|".join(re.escape(name) for name in names) or "(?!)"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
