"""The layers that get deltas: kinds, name patterns, the classifier, and the q, k, v rows of a fused projection.

Patterns are fnmatch patterns over module names. A pattern without wildcards is the name of a layer, or else the end of
names, as in peft's ``target_modules``: ``fc1`` is every ``….fc1``. ``all-linear`` is every linear layer except the
classifier, as in peft.

A site is a module's name, as timm gives it, or one part of a fused attention projection: ``blocks.0.attn.qkv[q]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from augment.base import did_you_mean
from distill.deltas.base import LAYER_KINDS, DeltaError, DeltaSettings, LayerKind, StructuralDelta, WeightDelta
from distill.deltas.statistics import Statistics

ALL_LINEAR = "all-linear"
_PART = re.compile(r"^(?P<name>.+)\[(?P<parts>[qkv]+)\]$")

# Attention classes that split the rows of `qkv` into three equal thirds. Others mix q, k and v within each head
# (tiny_vit, levit, maxvit), so a class that is not listed is refused rather than cut at the wrong rows.
_THIRDS = {
    "timm.layers.attention": {"Attention", "AttentionRope"},
    "timm.models.beit": {"Attention"},
    "timm.models.cait": {"TalkingHeadAttn"},
    "timm.models.eva": {"EvaAttention"},
    "timm.models.mvitv2": {"MultiScaleAttention"},
    "timm.models.swin_transformer": {"WindowAttention"},
    "timm.models.swin_transformer_v2": {"WindowAttention"},
    "timm.models.vision_transformer": {"Attention"},
    "timm.models.vision_transformer_relpos": {"RelPosAttention"},
    "timm.models.vision_transformer_sam": {"Attention"},
    "timm.models.xcit": {"XCA"},
}


@dataclass(frozen=True)
class Target:
    """A layer, or the rows ``rows`` of its weight and bias."""

    name: str
    layer: str
    rows: tuple[int, int] | None = None


def layer_kind(layer: nn.Module) -> LayerKind | None:
    """The kind of a layer that has a weight of its own; None for any other module.

    Decided by class, so timm's Conv2dSame, StdConv2d and BatchNormAct2d count as their base classes. Norms that derive
    from no torch norm (timm's RmsNorm, FrozenBatchNormAct2d) are recognized by ``Norm`` in their class's name.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, nn.Conv2d):
        return "depthwise" if layer.groups > 1 and layer.groups == layer.in_channels else "conv"
    if weight.ndim == 1 and any("Norm" in cls.__name__ for cls in type(layer).__mro__):
        return "norm"
    return None


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of a timm model's classifier: one, two for a distilled DeiT, none for a headless model."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    modules = dict(model.named_modules())
    names = (named,) if isinstance(named, str) else tuple(named)
    return tuple(name for name in names if any(True for _ in getattr(modules.get(name), "parameters", tuple)()))


def inside(name: str, parents: Iterable[str]) -> bool:
    """Whether the module or tensor ``name`` is one of ``parents`` or inside one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def owners_blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of blocks that no delta may change: the middle of an emulator, see :mod:`distill.models.emulator`."""
    return getattr(model, "owners_blocks", ())


def find_target(model: nn.Module, site: str) -> Target:
    """The target that a site names. Raises ``DeltaError`` if the model has no such layer."""
    part = _PART.match(site)
    name = part["name"] if part else site
    try:
        exists = layer_kind(model.get_submodule(name)) is not None
    except AttributeError:
        exists = False
    if not exists:
        raise DeltaError(f"{site!r}: the model has no such layer{_near(name, dict(model.named_modules()))}")
    if part is None:
        return Target(name, name)
    return Target(site, name, _rows(dict(model.named_modules()), name, part["parts"]))


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern without a ``[q]`` part matches.

    Args:
        pattern: an fnmatch pattern. Without wildcards it is a whole name; if there is none, whole parts at the end of
            names.
        names: of modules, parts divided by dots.

    Returns:
        The matching names, in their order.
    """
    names = list(names)
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if matches or any(character in pattern for character in "*?["):
        return matches
    return [name for name in names if name.endswith(f".{pattern}")]


def select(model: nn.Module, settings: DeltaSettings, head: Sequence[str]) -> dict[str, list[Target]]:
    """The layers that a delta's patterns match.

    The classifier is left out unless a pattern without wildcards names it, and layers in :func:`owners_blocks` always.

    Args:
        model: names are those of ``model.named_modules()``.
        settings: of a weight delta: its ``sites``, ``exclude`` and ``kinds``.
        head: names of the classifier's modules.

    Returns:
        Pattern → targets in the model's order. A target that several patterns match belongs to the first of them.

    Raises:
        DeltaError: a pattern matches no layer of the right kind; the text gives similar module names. Or it matches
            layers of the owner's blocks alone.
    """
    method = settings.component
    assert method is not None and issubclass(method, WeightDelta | Statistics)
    owners = owners_blocks(model)
    kinds = set(settings.kinds or method.kinds)
    if kinds - method.kinds:
        raise DeltaError(
            f"{settings.type}: cannot change layers of kind {', '.join(sorted(kinds - method.kinds))}; "
            f"it supports {', '.join(kind for kind in LAYER_KINDS if kind in method.kinds)}"
        )
    modules = dict(model.named_modules())
    own = [name for name, module in modules.items() if isinstance(module, StructuralDelta)]
    layers = {
        name: kind
        for name, module in modules.items()
        if "parametrizations" not in name.split(".")
        and not inside(name, own)
        and (kind := layer_kind(module)) is not None
    }
    for pattern in settings.exclude:
        if not matching(pattern, layers):
            raise DeltaError(f"{settings.type}: exclude pattern {pattern!r} matches no layer{_near(pattern, layers)}")
    excluded = {name for pattern in settings.exclude for name in matching(pattern, layers)}
    targets: dict[str, list[Target]] = {}
    taken: set[str] = set()
    for pattern in settings.sites:
        part = _PART.match(pattern)
        glob = part["name"] if part else pattern
        linear = pattern == ALL_LINEAR
        if linear and "linear" not in kinds:
            raise DeltaError(f"{settings.type}: {pattern} selects linear layers, kinds are {', '.join(sorted(kinds))}")
        matches = [n for n, kind in layers.items() if kind == "linear"] if linear else matching(glob, layers)
        if linear and not any(not inside(name, head) for name in matches):
            raise DeltaError(f"{settings.type}: {pattern}: there is no linear layer except the classifier; try '*'")
        if not matches:
            candidates = [name for name, kind in layers.items() if kind in kinds] or layers
            parts = "; brackets hold q, k or v" if "[" in glob else ""
            raise DeltaError(f"{settings.type}: pattern {pattern!r} matches no layer{_near(glob, candidates)}{parts}")
        matches = [name for name in matches if name == glob or not inside(name, head)]
        matches = [name for name in matches if name not in excluded]
        if matches and all(inside(name, owners) for name in matches):
            ends = [name for name in layers if not inside(name, owners)]
            raise DeltaError(
                f"{settings.type}: pattern {pattern!r} matches layers of the emulator's middle alone, such as "
                f"{matches[0]!r}, which its owner replaces; name layers of the ends, such as {ends[0]!r}"
            )
        matches = [name for name in matches if not inside(name, owners)]
        fitting = [name for name in matches if layers[name] in kinds]
        if not fitting:
            other = f" (it matches {matches[0]!r}, a {layers[matches[0]]})" if matches else " (all are excluded)"
            raise DeltaError(
                f"{settings.type}: pattern {pattern!r} matches no {' or '.join(sorted(kinds))} layer{other}"
            )
        matched = [Target(name, name) for name in fitting]
        if part:
            letters = dict.fromkeys(part["parts"])
            matched = [Target(f"{n}[{q}]", n, _rows(modules, n, q)) for n in fitting for q in letters]
        targets.setdefault(pattern, []).extend(target for target in matched if target.name not in taken)
        taken.update(target.name for target in matched)
    return targets


def _rows(modules: dict[str, nn.Module], name: str, letter: str) -> tuple[int, int]:
    """First and past-the-last row of q, k or v in a fused projection."""
    layer, parent = modules[name], modules[name.rpartition(".")[0]]
    known = any(cls.__name__ in _THIRDS.get(cls.__module__, ()) for cls in type(parent).__mro__)
    if not known or not name.endswith("qkv") or not isinstance(layer, nn.Linear) or layer.out_features % 3:
        owner = f"{type(parent).__module__}.{type(parent).__name__}"
        raise DeltaError(
            f"{name}[{letter}]: the rows of q, k and v in {owner} are not known; change the whole layer with {name!r}"
        )
    third = layer.out_features // 3
    start = "qkv".index(letter) * third
    return start, start + third


def _near(name: str, layers: Iterable[str]) -> str:
    """The nearest name, or a few examples: a model has hundreds."""
    names = list(layers)
    hint = did_you_mean(name, names)
    return hint if hint.startswith("; did") else f"; layers are named like {', '.join(map(repr, names[:5]))}"
