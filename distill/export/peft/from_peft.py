"""A peft adapter (LoRA, DoRA, IA3) as a delta file of a timm backbone.

The layers are those that the adapter has tensors for. peft loads an adapter onto any network whose shapes fit, random
weights included; a delta file names its backbone by the SHA-256 of every tensor, which is made here. So the network
must be the one that the adapter was trained on, which the adapter itself cannot prove.

What an adapter has beyond that is refused by name: other methods, LoRA variants that compute something else, initial
values that changed the backbone (PiSSA, OLoRA, …), modules_to_save other than the classifier, grouped convs whose
factor A reads other groups, and layers that are none of a timm model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.deltas.algebra import Chain, Link
from distill.deltas.base import DeltaTensors
from distill.deltas.bias import Bias
from distill.deltas.dora import DoRA
from distill.deltas.ia3 import IA3
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import backbone_state, head_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest
from distill.export.delta.model import DeltaFile
from distill.export.manifest import Preprocessing, model_arguments
from distill.export.peft.files import PeftAdapter
from distill.export.peft.layers import refusal, row_lengths
from distill.models.fingerprint import fingerprint
from distill.models.network import Network

# Fields that do not change what a trained adapter computes, and those that are read here.
# fmt: off
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "feedforward_modules", "inference_mode", "init_ia3_weights",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_dora", "use_rslora",
}
# fmt: on
_INIT = (True, False, None, "gaussian", "orthogonal", "eva")


def head_rows(adapter: PeftAdapter, names: tuple[str, ...]) -> int | None:
    """Number of classes of the classifier that an adapter holds; None if it holds none.

    Args:
        adapter: with or without a classifier.
        names: of the classifier's modules.
    """
    for name in names:
        weight = adapter.tensors.get(f"{name}.weight")
        if weight is not None:
            return len(weight)
    return None


def from_peft(adapter: PeftAdapter, network: Network, beside: DeltaManifest | None = None) -> DeltaFile:
    """The content of a delta file whose change of a network is that of an adapter.

    Args:
        adapter: trained on this network.
        network: with the classes of the adapter's classifier; without one in the adapter, its own stays.
        beside: the manifest of the delta file that the adapter was made from, before it was trained further: labels,
            preprocessing and arguments are taken from it, and the network must be its backbone.

    Returns:
        The content, to be written by ``save_delta_file``.

    Raises:
        ExportError: the adapter has what no delta file can hold, or does not fit the network.
    """
    model, config = network.model, adapter.config
    kind = str(config.get("peft_type"))
    if kind not in ("LORA", "IA3"):
        raise ExportError(f"peft_type is {kind}; a delta file can hold LORA (with or without use_dora) and IA3")
    _check_config(config)
    head = classifier_names(model)
    layers, rest = _by_layer(adapter, model)
    values = {f"head/{name}": t.detach().clone() for name, t in head_state(model, head).items()}
    biases: dict[str, Tensor] = {}
    for name in list(rest):
        if inside(name, head):
            values[f"head/{name}"] = _fitting(rest.pop(name), values.get(f"head/{name}"), name)
        elif name.endswith(".bias") and config.get("bias", "none") != "none":
            biases[name.removesuffix(".bias").removesuffix(".base_layer")] = rest.pop(name)
    if rest:
        saved = ", ".join(config.get("modules_to_save") or ())
        reason = f" (modules_to_save: {saved}; the classifier is {' and '.join(head) or 'none'})" if saved else ""
        raise ExportError(f"no delta can hold {len(rest)} tensors of the adapter: {', '.join(list(rest)[:5])}{reason}")
    chains: dict[str, Chain] = {}
    problems: list[str] = []
    for name, tensors in layers.items():
        try:
            read = _ia3 if kind == "IA3" else _lora
            chains[name] = read(name, model.get_submodule(name), tensors, config)
        except ExportError as error:
            problems.append(f"{name} {error}")
    for name, bias in biases.items():
        own = getattr(_module(model, name), "bias", None)
        if own is None or own.shape != bias.shape:
            problems.append(f"{name} has no bias of the adapter's shape")
        elif not torch.equal(own, bias):
            shift = DeltaTensors(Bias.Settings(), {"shift": bias - own.detach()})
            chains[name] = (*chains.get(name, ()), Link(name, shift))
    if problems:
        raise ExportError(f"{len(problems)} layers cannot be read:\n  " + "\n  ".join(problems[:20]))
    about = _about(network, beside)
    return DeltaFile(about, chains, values)


def _about(network: Network, beside: DeltaManifest | None) -> DeltaManifest:
    """The manifest, before the tensors are written."""
    model: Any = network.model
    backbone = fingerprint(backbone_state(model, classifier_names(model)))
    if beside is not None:
        if beside.backbone.sha256 != backbone.sha256 or beside.num_classes != model.num_classes:
            raise ExportError(
                f"the adapter was exported from a delta of another backbone ({beside.origin}, SHA-256 "
                f"{beside.backbone.sha256[:12]}…) than {network.origin} ({backbone.sha256[:12]}…)"
            )
        return beside.model_copy(update={"results": (), "packed": {}})
    preprocessing = Preprocessing.of(model, network.input.size)
    return DeltaManifest(
        architecture=network.architecture,
        model_args=model_arguments(model),
        num_classes=model.num_classes,
        origin=network.origin,
        backbone=backbone,
        deltas=(),
        sha256="",
        labels=(),
        preprocessing=preprocessing,
    )


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise if an adapter's settings say that it computes something that is not read here."""
    init = config.get("init_lora_weights", True)
    if init not in _INIT:
        raise ExportError(
            f"init_lora_weights is {init!r}, which changes the backbone's weights before training; convert the adapter "
            "with peft: save_pretrained(folder, path_initial_model_for_weight_conversion=…)"
        )
    others = {name: value for name, value in config.items() if name not in _UNDERSTOOD and value}
    if others:
        listed = ", ".join(f"{name}: {str(value)[:40]}" for name, value in list(others.items())[:5])
        raise ExportError(f"the adapter has settings that a delta file has no form for: {listed}")


def _by_layer(adapter: PeftAdapter, model: nn.Module) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Layer → its tensors by their names in peft, and the tensors of no adapted layer."""
    modules = dict(model.named_modules())
    layers: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    unknown: dict[str, None] = {}
    for key, tensor in adapter.tensors.items():
        if ".original_module." in key:  # with bias: all, peft also saves that of the classifier before training
            continue
        key = key.replace(".modules_to_save.", ".")
        match = re.fullmatch(r"(.+?)\.(lora_A\.weight|lora_B\.(?:weight|bias)|lora_magnitude_vector|ia3_l)", key)
        match = match or re.fullmatch(r"(.+?)\.(lora_magnitude_vector)\.weight", key)
        if match is None:
            rest[key] = tensor
        elif match[1] in modules:
            layers.setdefault(match[1], {})[match[2]] = tensor.float()
        else:
            unknown[match[1]] = None
    if unknown:
        architecture: Any = model.pretrained_cfg["architecture"]  # type: ignore[index]
        raise ExportError(
            f"{architecture} has no layers {', '.join(list(unknown)[:5])}; adapters of transformers' models have other "
            f"names than timm's, such as {next((name for name in modules if name.count('.') > 1), '')!r}"
        )
    if not layers:
        raise ExportError("the adapter has no tensors of LoRA, DoRA or IA3")
    order = {name: number for number, name in enumerate(modules)}
    return dict(sorted(layers.items(), key=lambda item: order[item[0]])), rest


def _lora(name: str, layer: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Chain:
    """The low_rank or dora delta of a layer."""
    method = "dora" if config.get("use_dora") else "low_rank"
    if reason := refusal(layer, True, method):
        raise ExportError(reason)
    missing = {"lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if method == "dora" else [])} - set(
        tensors
    )
    if missing:
        raise ExportError(f"lacks {', '.join(sorted(missing))}")
    if method == "low_rank" and "lora_magnitude_vector" in tensors:
        raise ExportError("has a lora_magnitude_vector, and use_dora is not set")
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups: int = getattr(layer, "groups", 1)
    inner = getattr(layer, "in_channels", weight.shape[1])
    A, B = tensors["lora_A.weight"], tensors["lora_B.weight"]
    rank, out = len(A), len(weight)
    ones = (1,) * (weight.ndim - 2)
    expected = ((rank, inner, *weight.shape[2:]), (out, rank // groups, *ones))
    if (tuple(A.shape), tuple(B.shape)) != expected:
        raise ExportError(f"has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, expected {expected}")
    alpha = config.get("lora_alpha", 8)
    key = next((own for own in config.get("alpha_pattern") or () if re.match(rf"(.*\.)?({own})$", name)), None)
    alpha = float(alpha if key is None else config["alpha_pattern"][key])
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)
    if alpha <= 0:
        raise ExportError(f"has lora_alpha {alpha:g}, and alpha of a delta is positive")
    A = A.reshape(groups, rank // groups, groups, -1)
    if groups > 1:
        own_group = torch.eye(groups, dtype=torch.bool)[:, None, :, None]
        if (A * ~own_group).any():
            raise ExportError(f"has {groups} groups, and a lora_A that reads other groups")
    A = A[torch.arange(groups), :, torch.arange(groups)]
    learned = {"A": A.clone(), "B": B.reshape(groups, out // groups, -1).clone()}
    # peft divides by the rank of all groups together.
    settings: Any = {"rank": rank // groups, "alpha": alpha / groups}
    if method == "dora":
        learned["magnitude"] = _magnitude(weight, learned["B"], tensors["lora_magnitude_vector"].flatten())
        made = DeltaTensors(DoRA.Settings(**settings), learned)
    else:
        made = DeltaTensors(LowRank.Settings(**settings), learned)
    bias = tensors.get("lora_B.bias")
    if bias is None:
        return (Link(name, made),)
    if method == "dora":
        raise ExportError("has lora_bias beside use_dora")
    if getattr(layer, "bias", None) is None:
        raise ExportError("has lora_bias, and no bias of its own")
    return Link(name, made), Link(name, DeltaTensors(Bias.Settings(), {"shift": bias * (alpha / rank)}))


def _magnitude(weight: Tensor, B: Tensor, magnitude: Tensor) -> Tensor:
    """``m / ‖W‖ − 1``: the length of every row relative to that of the backbone's."""
    lengths = row_lengths(weight)
    if magnitude.shape != lengths.shape:
        raise ExportError(f"has a lora_magnitude_vector of {len(magnitude)} rows, expected {len(lengths)}")
    empty = lengths == 0
    if bool(B.reshape(len(lengths), -1)[empty].any()):
        raise ExportError("has rows of zeros, whose length a dora delta cannot change")
    relative = magnitude.double() / lengths.masked_fill(empty, 1) - 1
    if bool((1 + relative).abs()[~empty].lt(2**-10).any()):
        raise ExportError("has lora_magnitude_vector below 2^-10 of the backbone's, the least that a dora delta holds")
    return relative.masked_fill(empty, 0).float()


def _ia3(name: str, layer: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Chain:
    """The ia3 delta of a layer."""
    if reason := refusal(layer, True, "ia3"):
        raise ExportError(reason)
    factors = tensors["ia3_l"]
    named = config.get("feedforward_modules") or ()
    # As peft matches them: a string is a pattern, and names are ends of names, within a part too.
    feedforward = (
        bool(re.fullmatch(named, name)) if isinstance(named, str) else any(name.endswith(own) for own in named)
    )
    weight: Tensor = layer.weight  # type: ignore[assignment]
    count = weight.shape[1] * getattr(layer, "groups", 1) if feedforward else len(weight)
    if factors.numel() != count:
        raise ExportError(f"has {factors.numel()} factors, expected {count}")
    settings = IA3.Settings(side="input" if feedforward else "output")
    return (Link(name, DeltaTensors(settings, {"scale": (factors.double().flatten() - 1).float()})),)


def _fitting(tensor: Tensor, own: Tensor | None, name: str) -> Tensor:
    if own is None or own.shape != tensor.shape:
        expected = "none" if own is None else str(tuple(own.shape))
        raise ExportError(f"the adapter's classifier has {name} {tuple(tensor.shape)}, and the network {expected}")
    return tensor.to(own.dtype)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)
