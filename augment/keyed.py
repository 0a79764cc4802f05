"""KeyedDraws: make code that uses torch's global generator draw by sample instead.

:class:`KeyedDraws` is a dispatch mode: inside it ``torch.rand``, ``tensor.normal_()``, ``torch.randperm`` and the like
take their numbers from :class:`augment.draws.Draws`. It makes kornia's and users' modules repeatable as they are.

Which sample a number belongs to is read from the shape: a leading dimension as long as the batch is the batch. For that
to be unambiguous, the code runs on a batch padded to a prime of at least 11 that divides no image dimension (see
:func:`padded_rows`). A tensor without the batch dimension is one draw for the whole (seed, epoch, view, op). Whatever
fits neither is an error, because its result would depend on the batch. Not detected is a draw for the whole batch whose
own length happens to be that prime; an operation with such a draw should declare its draws (see
:class:`augment.operation.Sampled`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from augment.base import UserError
from augment.draws import Draws


class DrawError(UserError, RuntimeError):
    """An operation drew random numbers in a way that cannot be keyed by sample; the text names both."""


def padded_rows(batch: int, sizes: Sequence[int]) -> int:
    """The smallest prime ≥ max(batch, 11) that divides none of ``sizes``."""
    rows = max(batch, 11)
    while any(rows % n == 0 for n in range(2, int(rows**0.5) + 1)) or any(size % rows == 0 for size in sizes):
        rows += 1
    return rows


class KeyedDraws(TorchDispatchMode):
    """Random operators of torch draw from ``draws`` while this is active.

    Args:
        draws: of one operation, for the padded batch: ``len(draws)`` is a prime from :func:`padded_rows`.
        name: the operation, for error texts.
        trusted: True for kornia's own generators, which are known and tested. A leading dimension B·k then means k rows
            per sample, and a random index into the batch is 0 (they use it only where all rows are equal).

    Raises:
        DrawError: on a draw that cannot be keyed (an unknown random operator, a batch dimension that is not the first,
            a permutation of the batch, one draw per sample in a loop), and at the end if the state of a global
            generator of torch, NumPy or Python has changed.
    """

    def __init__(self, draws: Draws, name: str, trusted: bool = False):
        super().__init__()
        self.name = name
        self._trusted = trusted
        self._rows = len(draws)
        self._draws = {True: draws, False: draws.shared()}
        self._slot = 0
        self._unbatched = 0
        self._before: list[tuple[str, Any]] = []

    def __enter__(self) -> KeyedDraws:
        self._before = _global_generators(self._trusted)
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            for (library, before), (_, after) in zip(self._before, _global_generators(self._trusted)):
                if before != after:
                    raise DrawError(
                        f"{self.name} draws from {library}'s global generator, which cannot be keyed by sample"
                    )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch wraps __torch_dispatch__ for torch.compile, which doubles the cost per operator.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        handler, kwargs = _HANDLERS.get(func.overloadpacket.__name__), kwargs or {}
        if handler is None or kwargs.get("out") is not None:
            raise DrawError(f"{self.name} draws with {func}, which cannot be keyed by sample; use torch.rand instead")
        return handler(self, func._overloadname, args, kwargs)

    def draw(
        self, kind: str, shape: Sequence[int], device: torch.device | None, *arguments: Any, **keywords: Any
    ) -> Tensor:
        """Draw numbers keyed by sample for a call of torch's random functions.

        Args:
            kind: a method of ``Draws``: uniform, normal, bernoulli, integers or bits.
            shape: the full shape; the first dimension may be the batch.
            device: of the result; None: the CPU.
            arguments: passed to that method.
            keywords: passed to that method.

        Returns:
            A tensor of ``shape``.
        """
        shape = tuple(shape)
        if self._trusted and shape and shape[0] > self._rows and shape[0] % self._rows == 0:
            rows_first = (self._rows, shape[0] // self._rows, *shape[1:])
            return self.draw(kind, rows_first, device, *arguments, **keywords).flatten(0, 1)
        batched = bool(shape) and shape[0] == self._rows
        if not batched:
            if any(size > 0 and size % self._rows == 0 for size in shape):
                shown = ", ".join(str(size).replace(str(self._rows), "B") for size in shape)
                raise DrawError(f"{self.name} draws a tensor [{shown}]; the batch B must be its first dimension, alone")
            self._unbatched += 1
            if self._unbatched >= self._rows:
                raise DrawError(f"{self.name} draws many times without a batch dimension; draw [B, …] at once")
        self._slot += 1
        draws = self._draws[batched] = self._draws[batched].to(device or "cpu")
        value = getattr(draws, kind)(self._slot, *arguments, shape=shape[1:] if batched else shape, **keywords)
        return value if batched else value[0]

    def permutation(self, n: int, device: torch.device | None) -> Tensor:
        """One permutation for the whole (seed, epoch, view, op)."""
        if n == self._rows:
            raise DrawError(f"{self.name} permutes the batch: a sample's result would depend on its neighbors")
        return self.draw("bits", (n,), device).argsort(stable=True)

    def index(self, low: int, high: int, shape: Sequence[int], device: torch.device | None) -> Tensor:
        """Uniform integers in [low, high).

        Args:
            low: the lowest.
            high: one more than the highest.
            shape: the full shape.
            device: of the result; None: the CPU.

        Returns:
            int64 of ``shape``.
        """
        if high - low == self._rows:
            if self._trusted:
                return torch.zeros(tuple(shape), device=device)
            raise DrawError(
                f"{self.name} draws an index into the batch: a sample's result would depend on its neighbors"
            )
        return self.draw("integers", shape, device, low, high)


@cache
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags or func.overloadpacket.__name__ in _HANDLERS


def _global_generators(trusted: bool) -> list[tuple[str, Any]]:
    """The states of the generators that must not change: torch's, and for untrusted code also Python's and NumPy's."""
    generators = (torch.default_generator, *torch.cuda.default_generators)
    states: list[tuple[str, Any]] = [("torch", [bytes(generator.get_state().numpy()) for generator in generators])]
    if not trusted:
        numpy_state = np.random.get_state()  # noqa: NPY002 (the legacy generator is the one that modules share)
        states.append(("Python", random.getstate()))
        states.append(("NumPy", [np.asarray(part).tobytes() for part in numpy_state]))
    return states


Handler = Callable[[KeyedDraws, str, Any, Any], Any]


def _first_two(given: Any, first: float, second: float) -> tuple[Any, Any]:
    return (given[0] if given else first), (given[1] if len(given) > 1 else second)


def _floating(dtype: torch.dtype | None) -> torch.dtype:
    return torch.get_default_dtype() if dtype is None else dtype


def _rand(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    return mode.draw("uniform", args[0], kwargs.get("device"), dtype=_floating(kwargs.get("dtype")))


def _randn(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    return mode.draw("normal", args[0], kwargs.get("device"), dtype=_floating(kwargs.get("dtype")))


def _randint(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    low, high, shape = args[:3] if overload.startswith("low") else (0, *args[:2])
    return mode.index(low, high, shape, kwargs.get("device")).to(kwargs.get("dtype") or torch.int64)


def _rand_like(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    return mode.draw("uniform", x.shape, kwargs.get("device") or x.device, dtype=kwargs.get("dtype") or x.dtype)


def _randn_like(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    return mode.draw("normal", x.shape, kwargs.get("device") or x.device, dtype=kwargs.get("dtype") or x.dtype)


def _randint_like(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    low, high = (int(bound) for bound in (args[1:3] if overload.startswith("low") else (0, args[1])))
    return mode.index(low, high, x.shape, kwargs.get("device") or x.device).to(kwargs.get("dtype") or x.dtype)


def _randperm(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    return mode.permutation(args[0], kwargs.get("device")).to(kwargs.get("dtype") or torch.int64)


def _uniform_(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    low, high = _first_two(args[1:], 0.0, 1.0)
    return x.copy_(mode.draw("uniform", x.shape, x.device, dtype=x.dtype) * (high - low) + low)


def _normal_(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    mean, std = _first_two(args[1:], 0.0, 1.0)
    return x.copy_(mode.draw("normal", x.shape, x.device, dtype=x.dtype) * std + mean)


def _normal(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    mean, std = _first_two(args, 0.0, 1.0)
    if overload == "float_float":
        shape, device, dtype = args[2], kwargs.get("device"), _floating(kwargs.get("dtype"))
    else:
        given = [value for value in (mean, std) if isinstance(value, Tensor)]
        shape, device, dtype = torch.broadcast_shapes(*(g.shape for g in given)), given[0].device, given[0].dtype
    return mode.draw("normal", shape, device, dtype=dtype) * std + mean


def _bernoulli(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    return mode.draw("bernoulli", x.shape, x.device, args[1] if overload == "p" else x).to(x.dtype)


def _bernoulli_(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    return x.copy_(mode.draw("bernoulli", x.shape, x.device, args[1] if len(args) > 1 else 0.5))


def _exponential_(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    x = args[0]
    rate = args[1] if len(args) > 1 else 1.0
    return x.copy_(mode.draw("uniform", x.shape, x.device, dtype=x.dtype).neg_().log1p_() / -rate)


def _multinomial(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> Tensor:
    weights, count, replacement = (*args, False)[:3]
    if replacement:
        cumulative = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
        u = mode.draw("uniform", (*weights.shape[:-1], count), weights.device, dtype=weights.dtype)
        return torch.searchsorted(cumulative, u, right=True).clamp_(max=weights.shape[-1] - 1)
    # The k largest of log w + Gumbel noise are a draw without replacement; -log(exponential) is Gumbel.
    u = mode.draw("uniform", weights.shape, weights.device, dtype=weights.dtype)
    exponential = -torch.log1p(-u)
    return (weights / exponential.clamp_(min=torch.finfo(u.dtype).tiny)).topk(count, dim=-1).indices


def _native_dropout(mode: KeyedDraws, overload: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    x, p = args[0], args[1]
    kept = mode.draw("bernoulli", x.shape, x.device, 1 - p)
    return x * kept / (1 - p), kept


_HANDLERS: dict[str, Handler] = {
    "rand": _rand,
    "rand_like": _rand_like,
    "uniform_": _uniform_,
    "randn": _randn,
    "randn_like": _randn_like,
    "normal_": _normal_,
    "normal": _normal,
    "randint": _randint,
    "randint_like": _randint_like,
    "randperm": _randperm,
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli_,
    "exponential_": _exponential_,
    "multinomial": _multinomial,
    "native_dropout": _native_dropout,
}
