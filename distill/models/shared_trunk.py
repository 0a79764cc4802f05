"""Computes equal parts of several networks once, as long as their inputs are the same tensor.

Every tensor has a number. The output of a shared part is numbered by the part and the numbers of its inputs, whichever
network the part is in; any other tensor gets a new number. So equal numbers mean equal bits, and a part whose output
number exists already returns the existing tensor: image → stem → block 1 → …, up to the first part that differs.
The order of the parts and the graph between them may be anything.

A tensor that is changed in place (``ReLU(inplace=True)``) gets a new number, its kept output is no longer returned, and
the part that changes it is always computed. Outputs under another autocast dtype count as different, a module in
training mode is always computed, and so is a part whose input needs a gradient.

Plain functions between parts end the chain, except timm's position embeddings (see
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

PartKey = tuple[int, str, str]
"""A part, the same key in all networks: number of the first network that has it, name of the module, method."""
Node = tuple[int, PartKey]
"""A part in one of the networks, by the network's number."""


@dataclass
class _KeptOutput:
    """The output of a part, for equal parts of other networks."""

    output: Tensor | tuple[Tensor | None, ...]
    limit: int | None
    """How often it is taken in a step."""
    uses: int = 0

    def __post_init__(self) -> None:
        self.versions = _versions(_tensors(self.output))
        on_cuda = [tensor.device for tensor in _tensors(self.output) if tensor.is_cuda]
        self.ready = torch.cuda.current_stream(on_cuda[0]).record_event() if on_cuda else None

    @property
    def intact(self) -> bool:
        return self.versions == _versions(_tensors(self.output))

    def take(self) -> Any:
        """The output, usable on the current stream, which may differ from the stream that computes it."""
        self.uses += 1
        if self.ready is not None:
            for tensor in _tensors(self.output):
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(self.ready)
                tensor.record_stream(stream)
        return self.output


@dataclass
class _Trial:
    """Observations from one forward pass of every network."""

    computed_by: dict[int, set[Node]] = field(default_factory=dict)
    """Number of an output → the parts that computed it."""
    kept: dict[Node, list[_KeptOutput]] = field(default_factory=dict)
    taking: set[Node] = field(default_factory=set)
    unequal: set[PartKey] = field(default_factory=set)
    """Parts whose output differs from one call to the next, such as random ones."""


class SharedTrunk:
    """``with trunk: …`` around forward passes of the networks; on exit they are as before, and no tensor is kept.

    Nothing is shared until ``try_out`` has found the parts to share. They stay valid while the frozen weights do not
    change: once one has been written to, nothing is shared any more.

    Args:
        networks: on their device.
    """

    def __init__(self, networks: Sequence[nn.Module] = ()):
        self._parts: dict[Node, Part] = {}
        names: dict[tuple[int, str, str], PartKey] = {}
        for (n, first), (m, second) in combinations(enumerate(networks), 2):
            for part, same in equal_parts(first, second):
                key = names.setdefault((n, part.name, part.method), (n, part.name, part.method))
                names[m, part.name, part.method] = key
                self._parts |= {(n, key): part, (m, key): same}
        self._kept_nodes: dict[Node, int] = {}
        """Parts whose output is kept → how often it is taken in a step."""
        self._kept_networks: set[int] = set()
        """Numbers of the networks that these parts are in."""
        self._taking: set[Node] = set()
        self._trial: _Trial | None = None
        self._watched: list[nn.Parameter] = []
        self._written = 0
        self._clear()

    def try_out(self, forward: Callable[[], object]) -> None:
        """Find what is shared in ``forward()``, which runs every network as a training step does.

        Here every network computes the parts that would be shared, and the outputs are compared.
        """
        if not any(weight.ndim > 1 for part in self._parts.values() for weight in _weights(part)):
            self._parts = {}  # pooling, activations and newly initialized norms alone are not worth sharing
            return
        trial = self._trial = _Trial()
        with self, torch.no_grad():
            forward()
        self._trial = None
        for node, kept in trial.kept.items():
            uses = max(entry.uses for entry in kept)
            # A part that writes into its input needs a tensor of its own.
            written = any(entry.uses and not entry.intact for entry in kept)
            if uses and not written and node[1] not in trial.unequal:
                self._kept_nodes[node] = uses
        useful = {key for _, key in self._kept_nodes}
        self._kept_networks = {n for n, _ in self._kept_nodes}
        self._taking = {(n, key) for n, key in trial.taking if key in useful}
        common = {node for nodes in trial.computed_by.values() if len({n for n, _ in nodes}) > 1 for node in nodes}
        chained = {node for node in common if node[1] not in trial.unequal} if useful else set()
        self._parts = {node: part for node, part in self._parts.items() if node in chained}
        weights = [weight for part in self._parts.values() for weight in _weights(part)]
        self._watched = [weight for weight in weights if not weight.requires_grad]
        self._written = self._writes()

    def taken(self, n: int) -> list[nn.Module]:
        """The modules of network n that are not computed, because another network's output is taken."""
        parts = [self._parts[node] for node in self._taking if node[0] == n]
        return [part.module for part in parts if part.method == "forward"]

    def __enter__(self) -> None:
        if self._parts and self._trial is None and self._writes() != self._written:
            logger.warning("frozen weights have been written to: nothing is shared between the networks any more")
            self._parts = {}
        for node, part in self._parts.items():
            vars(part.module)[part.method] = partial(self._call, node, part, getattr(part.module, part.method))

    def __exit__(self, *error: object) -> None:
        for part in self._parts.values():
            vars(part.module).pop(part.method, None)
        self._clear()

    def _clear(self) -> None:
        self._count = count()
        self._numbers: Any = WeakTensorKeyDictionary()
        """Tensor → its version when it got its number, and the number."""
        self._results: dict[Hashable, int] = {}
        self._kept: dict[int, _KeptOutput] = {}

    def _writes(self) -> int:
        """How often weights of shared parts have been written to. Buffers do not count: DDP copies into them."""
        return sum(tensor._version for tensor in self._watched)

    def _call(self, node: Node, part: Part, compute: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        """Replaces a part's method."""
        keeps = self._trial is not None or node in self._kept_nodes
        idle = not keeps and not self._kept and node[0] not in self._kept_networks
        if idle or any(module.training for module in part.reads):
            return compute(*inputs, **named)
        tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
        number = self._number_of_result(node[1], tensors, inputs, named)
        if number is None:
            return compute(*inputs, **named)
        earlier = self._kept.get(number)
        if earlier is not None and earlier.intact:
            return self._take(node, number, earlier, partial(compute, *inputs, **named))
        before = _versions(tensors)
        output = compute(*inputs, **named)
        made = _tensors(output)
        if not made or any(tensor.requires_grad for tensor in made):
            return output
        untouched = before == _versions(tensors)
        if untouched and any(new is old for new in made for old in tensors):  # nn.Identity returns its input
            return output
        for index, tensor in enumerate(made):
            self._numbers[tensor] = (tensor._version, self._number_of((number, index)))
        if self._trial is not None:
            self._trial.computed_by.setdefault(number, set()).add(node)
        if keeps and untouched:
            self._kept[number] = kept = _KeptOutput(output, self._kept_nodes.get(node))
            if self._trial is not None:
                self._trial.kept.setdefault(node, []).append(kept)
        return output

    def _take(self, node: Node, number: int, earlier: _KeptOutput, compute: Callable[[], Any]) -> Any:
        if self._trial is not None:
            output = compute()
            if not _equal(output, earlier.output):
                self._trial.unequal.add(node[1])
                return output
            self._trial.computed_by[number].add(node)
            self._trial.taking.add(node)
        output = earlier.take()
        if earlier.uses == earlier.limit:
            del self._kept[number]
        return output

    def _number_of_result(
        self, key: PartKey, tensors: list[Tensor], inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> int | None:
        """The number of a part's output; None if its arguments cannot be compared or need a gradient."""
        if not tensors or any(tensor.requires_grad for tensor in tensors):
            return None
        arguments: list[Hashable] = []
        for value in (*inputs, *named.values()):
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
        """The same number for the same origin: a part with its inputs, or one output of several."""
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
    """The tensor, or the tensors of a tuple; empty if the tuple holds anything else but None."""
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
