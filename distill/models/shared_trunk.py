"""What several networks share is computed once: parts that are the same, as long as they are given the same tensor.

Every tensor has a number. What a shared part puts out is numbered after the part and the numbers of what it was given,
whichever network it stands in; any other tensor has a number of its own. So equal numbers are equal bits, and a part
that is about to compute a number which is at hand returns that tensor: image → stem → block 1 → …, up to the first part
that differs. Nothing is assumed about the order of parts, or about the graph between them.

A tensor that has been written to since (``ReLU(inplace=True)``) is another value: it keeps its old number no longer,
what was kept of it is not returned, and the part that writes is always computed. Neither autocast nor a module in
training mode is ever taken for the same; a part whose input needs a gradient is computed.

What happens between parts in plain functions ends the chain, but for timm's position embeddings (see
:mod:`distill.models.module_equality`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from distill.models.module_equality import Part, equal_parts

logger = logging.getLogger(__name__)

Key = tuple[int, str, str]
"""What a part is called in all networks: number of the first that has it, name of the module, method."""
Place = tuple[int, Key]
"""A network's own copy of a part."""


@dataclass
class _Kept:
    """A part's output, for others that come to the same number."""

    output: Tensor | tuple[Tensor | None, ...]
    limit: int | None
    """How often it will be asked for."""
    uses: int = 0

    def __post_init__(self) -> None:
        self.versions = _versions(_tensors(self.output))
        on_cuda = [tensor.device for tensor in _tensors(self.output) if tensor.is_cuda]
        self.ready = torch.cuda.current_stream(on_cuda[0]).record_event() if on_cuda else None

    @property
    def intact(self) -> bool:
        return self.versions == _versions(_tensors(self.output))

    def take(self) -> Any:
        """The output, for the current stream, which may be another one than that which it is computed on."""
        self.uses += 1
        if self.ready is not None:
            for tensor in _tensors(self.output):
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(self.ready)
                tensor.record_stream(stream)
        return self.output


@dataclass
class _Trial:
    """What one forward pass of every network shows."""

    seen: dict[int, set[Place]] = field(default_factory=dict)
    """Number → where it came out."""
    kept: dict[Place, list[_Kept]] = field(default_factory=dict)
    takers: set[Place] = field(default_factory=set)
    unlike: set[Key] = field(default_factory=set)
    """Parts that put out something else when they are asked again, such as random ones."""


class SharedTrunk:
    """``with trunk: …`` around forward passes of the networks; afterwards they are as before, and nothing is kept.

    Nothing is shared before ``try_out`` has found what can be. It holds for frozen weights as they are then: once they
    have been written to, nothing is shared any more.

    Args:
        networks: on their device.
    """

    def __init__(self, networks: Sequence[nn.Module] = ()):
        self._parts: dict[Place, Part] = {}
        names: dict[tuple[int, str, str], Key] = {}
        for (n, first), (m, second) in combinations(enumerate(networks), 2):
            for part, same in equal_parts(first, second):
                key = names.setdefault((n, part.name, part.method), (n, part.name, part.method))
                names[m, part.name, part.method] = key
                self._parts |= {(n, key): part, (m, key): same}
        self._keepers: dict[Place, int] = {}
        """Whose outputs are kept → how often each is asked for."""
        self._givers: set[int] = set()
        """The networks that they are in."""
        self._takers: set[Place] = set()
        self._trial: _Trial | None = None
        self._watched: list[nn.Parameter] = []
        self._written = 0
        self._clear()

    def try_out(self, forward: Callable[[], object]) -> None:
        """Find what is shared in ``look()``, in which every network looks as it will in use.

        What would be shared is computed by everybody here, and compared.
        """
        if not any(weight.ndim > 1 for part in self._parts.values() for weight in _weights(part)):
            self._parts = {}  # pooling, activations and fresh norms alone are no trunk
            return
        trial = self._trial = _Trial()
        with self, torch.no_grad():
            forward()
        self._trial = None
        for place, kept in trial.kept.items():
            uses = max(entry.uses for entry in kept)
            # Who writes into what it is given needs a tensor of its own.
            written = any(entry.uses and not entry.intact for entry in kept)
            if uses and not written and place[1] not in trial.unlike:
                self._keepers[place] = uses
        useful = {key for _, key in self._keepers}
        self._givers = {n for n, _ in self._keepers}
        self._takers = {(n, key) for n, key in trial.takers if key in useful}
        common = {place for places in trial.seen.values() if len({n for n, _ in places}) > 1 for place in places}
        chained = {place for place in common if place[1] not in trial.unlike} if useful else set()
        self._parts = {place: part for place, part in self._parts.items() if place in chained}
        weights = [weight for part in self._parts.values() for weight in _weights(part)]
        self._watched = [weight for weight in weights if not weight.requires_grad]
        self._written = self._writes()

    def taken(self, n: int) -> list[nn.Module]:
        """The modules of network n that are not computed, since another network's output is at hand."""
        parts = [self._parts[place] for place in self._takers if place[0] == n]
        return [part.module for part in parts if part.method == "forward"]

    def __enter__(self) -> None:
        if self._parts and self._trial is None and self._writes() != self._written:
            logger.warning("frozen weights have been written to: nothing is shared between the networks any more")
            self._parts = {}
        for place, part in self._parts.items():
            vars(part.module)[part.method] = partial(self._call, place, part, getattr(part.module, part.method))

    def __exit__(self, *error: object) -> None:
        for part in self._parts.values():
            vars(part.module).pop(part.method, None)
        self._clear()

    def _clear(self) -> None:
        self._count = count()
        self._numbers: Any = WeakTensorKeyDictionary()
        """Tensor → its version when it got its number, and the number."""
        self._results: dict[Hashable, int] = {}
        self._kept: dict[int, _Kept] = {}

    def _writes(self) -> int:
        """How often the shared parts' weights have been written to. Buffers are not asked: DDP copies them around."""
        return sum(tensor._version for tensor in self._watched)

    def _call(self, place: Place, part: Part, compute: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """In the place of a part's method."""
        keeps = self._trial is not None or place in self._keepers
        idle = not keeps and not self._kept and place[0] not in self._givers
        if idle or any(module.training for module in part.reads):
            return compute(*given, **named)
        tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor)]
        number = self._number_of_result(place[1], tensors, given, named)
        if number is None:
            return compute(*given, **named)
        earlier = self._kept.get(number)
        if earlier is not None and earlier.intact:
            return self._take(place, number, earlier, partial(compute, *given, **named))
        before = _versions(tensors)
        output = compute(*given, **named)
        made = _tensors(output)
        if not made or any(tensor.requires_grad for tensor in made):
            return output
        untouched = before == _versions(tensors)
        if untouched and any(new is old for new in made for old in tensors):  # an Identity: it has its number
            return output
        for index, tensor in enumerate(made):
            self._numbers[tensor] = (tensor._version, self._number_of((number, index)))
        if self._trial is not None:
            self._trial.seen.setdefault(number, set()).add(place)
        if keeps and untouched:
            self._kept[number] = kept = _Kept(output, self._keepers.get(place))
            if self._trial is not None:
                self._trial.kept.setdefault(place, []).append(kept)
        return output

    def _take(self, place: Place, number: int, earlier: _Kept, compute: Callable[[], Any]) -> Any:
        if self._trial is not None:
            output = compute()
            if not _equal(output, earlier.output):
                self._trial.unlike.add(place[1])
                return output
            self._trial.seen[number].add(place)
            self._trial.takers.add(place)
        output = earlier.take()
        if earlier.uses == earlier.limit:
            del self._kept[number]
        return output

    def _number_of_result(
        self, key: Key, tensors: list[Tensor], given: tuple[Any, ...], named: dict[str, Any]
    ) -> int | None:
        """The number of what a part makes of its arguments; None where these are not comparable, or need a gradient."""
        if not tensors or any(tensor.requires_grad for tensor in tensors):
            return None
        arguments: list[Hashable] = []
        for value in (*given, *named.values()):
            if isinstance(value, Tensor):
                arguments.append(self._number(value))
            elif value is None or isinstance(value, (bool, int, float, str)):
                arguments.append((type(value), value))
            else:
                return None
        device = tensors[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self._number_of((key, precision, tuple(named), *arguments))

    def _number_of(self, origin: Hashable) -> int:
        """The same number for the same origin."""
        return self._results.setdefault(origin, next(self._count))

    def _number(self, tensor: Tensor) -> int:
        version, number = self._numbers.get(tensor, (-1, -1))
        if version != tensor._version:
            number = next(self._count)
            self._numbers[tensor] = (tensor._version, number)
        return number


def _weights(part: Part) -> list[nn.Parameter]:
    return [weight for module in part.reads for weight in module.parameters(recurse=False)]


def _tensors(values: Any) -> list[Tensor]:
    """A tensor, or the tensors of a tuple; none if anything else but None is in it."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, tuple) or not all(value is None or isinstance(value, Tensor) for value in values):
        return []
    return [value for value in values if value is not None]


def _versions(tensors: list[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _equal(first: Any, second: Any) -> bool:
    mine, other = _tensors(first), _tensors(second)
    return len(mine) == len(other) and all(map(torch.equal, mine, other))
