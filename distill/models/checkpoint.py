"""Finds a timm model's weights in a checkpoint, whatever wraps them, and checks that every tensor fits.

Accepted are the files that timm's loader accepts, and these:

- names below a prefix, such as Lightning's ``model.`` or ``student.backbone.``, if the tensors of one prefix fit;
- a head under another usual name (``linear``, ``last_linear`` …), also outside the prefix, and files without a head;
- files without ``num_batches_tracked``, which PyTorch has counted since 0.4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from augment.base import did_you_mean
from distill.deltas.sites import inside
from distill.models.checkpoint_file import Checkpoint
from distill.models.timm_models import Filter, State
from distill.models.weights import NetworkError, check_fits

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys of a checkpoint that hold weights, in the order in which timm's loader looks for them."""
_WRAPPERS = frozenset(
    f"{' '.join(CONTAINERS)} module _orig_mod student teacher backbone encoder net network ema ema_model weights "
    "params model_state_dict model_state".split()
)
"""Names that training code puts before those of a network."""
_HEADS = ("fc", "head", "linear", "classifier", "last_linear", "logits")
_COUNTED = "num_batches_tracked"
_OF_PROFILERS = ("total_ops", "total_params")
"""Buffers that the profiler thop leaves in a network."""
_NOT_WEIGHTS = ("optimizer", "scheduler.", "lr_scheduler", "amp_scaler.", "scaler.", "callbacks.", "loops.")


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint that belong to a model, under the model's names."""

    state: State
    classes: int | None
    """Width of the head; None if the file has none."""
    prefix: str
    """That the names have in the file; empty if they are the model's own."""
    notes: tuple[str, ...]
    """What a user should know about the choice: other prefixes, resampled tensors, tensors that are not read."""
    failure: str
    """The error of timm's filter, which may be why the tensors do not fit; empty if it had none."""


def find_weights(checkpoint: Checkpoint, model: nn.Module, adapt: Filter, prefix: str | None = None) -> Weights:
    """Find the weights of a model in a checkpoint.

    Args:
        checkpoint: the file.
        model: a timm model; its head may have another width than that of the file.
        adapt: the filter of timm's loader for this model.
        prefix: of the names in the file, with or without the key of the mapping that they are in (``state_dict.``);
            None: the one whose tensors fit.

    Returns:
        The weights. Names and shapes are not checked yet, see :func:`load_weights`.

    Raises:
        NetworkError: there is no such prefix, or the tensors of several prefixes fit equally well.
    """
    heads = _head_names(model)
    body = {name for name in model.state_dict() if not inside(name, heads) and not name.endswith(_COUNTED)}
    candidates = [_Candidate.of(checkpoint, each, body, adapt) for each in _prefixes(checkpoint, body, prefix)]
    chosen = _choose(checkpoint, candidates, len(body))
    state = {name: tensor for name, tensor in chosen.state.items() if not name.endswith(_OF_PROFILERS)}
    outside = {name: t for name, t in checkpoint.tensors.items() if not name.startswith(chosen.prefix)}
    _rename_head(model, heads, state, outside)
    own = model.state_dict()
    state |= {name: own[name] for name in own if name.endswith(_COUNTED) and name not in state}
    widths = [len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state]
    notes = [*chosen.notes, *_resampled(own, chosen.raw, state)]
    extras = (*_NOT_WEIGHTS, *chosen.others)
    if unread := [name for name in outside if not name.startswith(extras)]:
        more = ", …" if len(unread) > 3 else ""
        notes.append(f"{len(unread)} tensors outside {chosen.prefix!r} are not read: {', '.join(unread[:3])}{more}")
    return Weights(state, widths[0] if widths else None, chosen.prefix, tuple(notes), chosen.failure)


def load_weights(model: nn.Module, weights: Weights, path: str) -> None:
    """Load weights into a model whose head has their width.

    Args:
        model: changed in place.
        weights: from :func:`find_weights`.
        path: of the file, for the message.

    Raises:
        NetworkError: a tensor is missing, unexpected or of another shape.
    """
    where = f"{path} (names after {weights.prefix!r})" if weights.prefix else path
    heads = _head_names(model) if weights.classes is None else ()
    own = {name: tensor for name, tensor in model.state_dict().items() if not inside(name, heads)}
    check_fits(own, weights.state, where)
    _check_values(own, weights.state, where)
    model.load_state_dict(weights.state, strict=weights.classes is not None)


def _check_values(own: State, state: State, where: str) -> None:
    """Raise ``NetworkError`` for values that are not finite, or whole numbers in place of weights."""
    for name, tensor in state.items():
        if name in own and own[name].is_floating_point():
            if not tensor.is_floating_point():
                raise NetworkError(f"{where}: {name} is {tensor.dtype}, not floats; a quantized file cannot be read")
            if not tensor.isfinite().all():
                raise NetworkError(f"{where}: {name} has values that are not finite (NaN or infinity)")


def _head_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of a timm model's classifiers, also of an architecture that timm creates without them."""
    named: Any = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    return (named,) if isinstance(named, str) else tuple(named)


@dataclass(frozen=True)
class _Candidate:
    """The tensors below a prefix."""

    prefix: str
    raw: State
    """Under the names of the file, without the prefix."""
    state: State
    """Under the model's names, at the model's size."""
    fitting: frozenset[str]
    """Names of the model's body that are in ``state``."""
    failure: str = ""
    """The error of timm's filter, if it had one; then ``state`` is ``raw``."""
    others: tuple[str, ...] = ()
    """Prefixes whose tensors fit as well, but come later in timm's order."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, prefix: str, body: set[str], adapt: Filter) -> _Candidate:
        raw = {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}
        failure = ""
        try:
            state = adapt(raw)
        except Exception as error:  # a filter that meets the tensors of another architecture
            state, failure = raw, f"{type(error).__name__}: {error}"
        fitting = [frozenset(body.intersection(names)) for names in (raw, state)]
        if len(fitting[0]) > len(fitting[1]):
            state, fitting = raw, fitting[:1]
        return cls(prefix, raw, state, fitting[-1], failure)

    @property
    def rank(self) -> int:
        first = self.prefix.partition(".")[0]
        return CONTAINERS.index(first) if first in CONTAINERS else len(CONTAINERS)

    @property
    def notes(self) -> list[str]:
        if not self.others:
            return []
        others = ", ".join(map(repr, self.others))
        return [f"the tensors of {self.prefix!r} are read; those of {others} fit too (the key prefix chooses)"]


def _prefixes(checkpoint: Checkpoint, body: set[str], prefix: str | None) -> list[str]:
    """The given prefix, or those that may fit: before a name of the model, or made of the names of wrappers."""
    if prefix is not None:
        prefix = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
        whole = [prefix, *(f"{container}.{prefix}" for container in CONTAINERS)]
        if there := [each for each in whole if any(name.startswith(each) for name in checkpoint.tensors)]:
            return there[:1]
        known = {name.rpartition(".")[0] + "." for name in checkpoint.tensors}
        raise NetworkError(f"{checkpoint.path} has no names that begin with {prefix!r}{did_you_mean(prefix, known)}")
    depth = max(name.count(".") for name in body)  # a deep name is followed by the same names in few places only
    deepest = sorted(name for name in body if name.count(".") == depth)
    probes = {deepest[0], deepest[len(deepest) // 2], deepest[-1]}
    prefixes = dict.fromkeys([""])
    for name in checkpoint.tensors:
        prefixes |= dict.fromkeys(_wrappers_of(name))
        prefixes |= {name.removesuffix(probe): None for probe in probes if f".{name}".endswith(f".{probe}")}
    return list(prefixes)


def _wrappers_of(name: str) -> Iterator[str]:
    prefix = ""
    for part in name.split(".")[:-1]:
        if part not in _WRAPPERS:
            return
        prefix += f"{part}."
        yield prefix


def _choose(checkpoint: Checkpoint, candidates: list[_Candidate], size: int) -> _Candidate:
    """The candidate of which most fits; of equals, the first in the order of timm's loader.

    Args:
        checkpoint: that they are from, for the message.
        candidates: at least one.
        size: number of tensors that the model has without its head.

    Returns:
        One of the candidates, with the prefixes of those that fit as well.

    Raises:
        NetworkError: several are equal and none comes first.
    """
    most = max(len(candidate.fitting) for candidate in candidates)
    equal = [candidate for candidate in candidates if len(candidate.fitting) == most]
    if 2 * most < size:  # the file of another architecture: no prefix will do
        return max(equal, key=lambda candidate: (-candidate.rank, len(candidate.raw), len(candidate.prefix)))
    if len(equal) == 1:
        return equal[0]
    equal.sort(key=lambda candidate: candidate.rank)
    if equal[0].rank == equal[1].rank and not _same(equal[0].state, equal[1].state):
        names = ", ".join(repr(candidate.prefix) for candidate in equal)
        raise NetworkError(f"{checkpoint.path}: the tensors of {names} fit; set the key prefix to one of them")
    return replace(equal[0], others=tuple(candidate.prefix for candidate in equal[1:]))


def _same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def _rename_head(model: nn.Module, heads: tuple[str, ...], state: State, outside: State) -> None:
    """Give the head the model's name for it, and move it to ``state`` if it is in ``outside``.

    Nothing changes unless the head is missing and exactly one layer is called like a head and reads as many features.
    """
    if len(heads) != 1 or f"{heads[0]}.weight" in state:
        return
    features: int = model.head_hidden_size  # type: ignore[assignment]
    for source in (state, outside):
        layers = [name.removesuffix(".weight") for name, tensor in source.items() if _is_head(name, tensor, features)]
        if len(layers) == 1 and not _is_of_several(layers[0], source):
            names = {f"{layers[0]}.{part}": f"{heads[0]}.{part}" for part in ("weight", "bias")}
            moved = {name: source.pop(name) for name in names if name in source}
            state |= {names[name]: tensor for name, tensor in moved.items()}
            return


def _is_head(name: str, tensor: Tensor, features: int) -> bool:
    layer, _, parameter = name.rpartition(".")
    called = parameter == "weight" and re.sub(r"\.\d+$", "", layer).rpartition(".")[2] in _HEADS
    return called and tensor.ndim == 2 and tensor.shape[1] == features


def _is_of_several(layer: str, state: State) -> bool:
    """Whether a layer with a number for its name, in a Sequential, is not the only one there that has weights."""
    container, _, number = layer.rpartition(".")
    others = (name for name in state if container and inside(name, (container,)) and not inside(name, (layer,)))
    return number.isdecimal() and any(name.endswith(".weight") for name in others)


def _resampled(own: State, raw: State, state: State) -> list[str]:
    """A note about the tensors that timm's filter has resampled to the model's size."""
    changed = [n for n in own if n in raw and n in state and raw[n].numel() != state[n].numel() and own[n].ndim > 1]
    if not changed:
        return []
    name = changed[0]
    more = f" and {len(changed) - 1} more tensors were" if len(changed) > 1 else " was"
    before, now = (" x ".join(map(str, tensors[name].shape)) for tensors in (raw, state))
    return [f"{name}{more} resampled from {before} to {now}, since the file is for another input size"]
