"""Random draws keyed by seed, epoch, view, sample and operation, without global state.

A draw is a pure function of (seed, epoch, view, sample id, op, slot, element): the same sample gets the same numbers
whatever the batch size, its position in the batch, the worker, the rank, the device or the restart point, and nothing
has to be stored to repeat them.

The generator is counter-based. Seed, epoch, view and op are folded on the host into one 64-bit key; every sample id is
mixed with it into the start of a stream; element ``n`` of slot ``s`` is ``mix(start + mix(s) + (n + 1)·γ)``. ``mix`` is
the finalizer of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014), written in
int64 tensor ops: multiplication wraps around, and ``>>`` is masked because torch's shift keeps the sign.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_Keys = TypeVar("_Keys", int, np.ndarray, Tensor)
_INVERSE = pow(_GAMMA, -1, 1 << 63)
"""Of γ, mod 2⁶³."""
_MANTISSA = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
"""Random bits that a dtype holds exactly in [0, 1): with more, rounding would reach 1."""


@cache
def _text_key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def sample_key(id: str) -> int:
    """The int64 id of a sample from its stable name: the first 63 bits of the name's SHA-256."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1


def copy_key(keys: _Keys, copies: _Keys) -> _Keys:
    """The int64 ids of a sample that comes several times in an epoch, so that its copies are augmented differently.

    ``(key + copy · γ) mod 2⁶³``: copy 0 has the sample's own id.

    Args:
        keys: of the samples, from :func:`sample_key`: a number, or int64 [B].
        copies: how often each sample came before in the epoch; a number, or int64 [B].

    Returns:
        The ids.
    """
    return (keys + copies * _signed(_GAMMA)) & (_WORD >> 1)


def copy_of(keys: Tensor, ids: Tensor) -> Tensor:
    """The numbers of the copies with which :func:`copy_key` makes ``ids`` of ``keys``, int64 in 0 … 2⁶³ − 1."""
    return ((ids - keys) * _INVERSE) & (_WORD >> 1)


def _signed(word: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def _mix_word(word: int) -> int:
    word &= _WORD
    word = (word ^ word >> 30) * _FIRST & _WORD
    word = (word ^ word >> 27) * _SECOND & _WORD
    return word ^ word >> 31


def _fold(key: int, part: int | str) -> int:
    number = _text_key(part) if isinstance(part, str) else part
    return _mix_word(key ^ _mix_word(number + _GAMMA))


def _mix_(x: Tensor) -> Tensor:
    """``_mix_word`` on every element of an int64 tensor, in place."""
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= _signed(_FIRST)
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= _signed(_SECOND)
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


class Draws:
    """Random numbers for a batch of samples.

    Args:
        seed: the run's seed.
        epoch: number of the epoch.
        view: name of the view; two views with the same name draw the same.
        ids: [B] int64 sample ids, on the device of the draws; see :func:`sample_key`.

    ``draws.op("RandomCrop")`` gives the draws of one operation. Each method takes a ``slot``, which numbers the draws
    of an operation, and a ``shape`` per sample, and returns ``[B, *shape]``.
    """

    def __init__(self, seed: int, epoch: int, view: int | str, ids: Tensor):
        if ids.dtype != torch.int64 or ids.ndim != 1:
            raise ValueError(f"sample ids must be int64 [B], not {ids.dtype} {list(ids.shape)}")
        self._key = _fold(_fold(_fold(0, seed), epoch), view)
        self.ids = ids
        self._starts: Tensor | None = None

    def _with(self, key: int, ids: Tensor) -> Draws:
        other = object.__new__(Draws)
        other._key, other.ids, other._starts = key, ids, None
        return other

    def __len__(self) -> int:
        return len(self.ids)

    def op(self, name: int | str) -> Draws:
        """The draws of the operation called ``name``."""
        return self._with(_fold(self._key, name), self.ids)

    def to(self, device: torch.device | str) -> Draws:
        """The same draws, made on ``device``. A copy to a GPU is asynchronous; one from it synchronizes."""
        device = torch.device(device)
        if self.ids.device == device:
            return self
        return self._with(self._key, self.ids.to(device, non_blocking=device.type == "cuda"))

    def of(self, ids: Tensor) -> Draws:
        """The same draws for other samples."""
        return self._with(self._key, ids)

    def padded(self, rows: int) -> Draws:
        """The same draws for ``rows`` samples: the last sample is repeated at the end."""
        filler = self.ids[-1:].expand(rows - len(self))
        return self._with(self._key, torch.cat([self.ids, filler]))

    def shared(self) -> Draws:
        """Draws [1, *shape] that belong to no sample: the same for the whole (seed, epoch, view, op)."""
        return self._with(_fold(self._key, "shared"), self.ids.new_zeros(1))

    def bits(self, slot: int, shape: Sequence[int] = ()) -> Tensor:
        """[B, *shape] int64, all 64 bits uniform."""
        if self._starts is None:
            self._starts = _mix_(_mix_(self.ids + _signed(self._key)) ^ _signed(_mix_word(self._key + _GAMMA)))
        start = self._starts + _signed(_mix_word(slot + 1))
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, device=start.device) * _signed(_GAMMA)
        return _mix_(start[:, None] + counter).view(len(self), *shape)

    def uniform(self, slot: int, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1).

        Args:
            slot: number of the draw within the operation; the same slot gives the same numbers.
            shape: per sample.
            dtype: floating; the numbers have as many random bits as it holds exactly.

        Returns:
            [B, *shape].
        """
        digits = _MANTISSA[dtype]
        return ((self.bits(slot, shape) >> (64 - digits)) & ((1 << digits) - 1)).to(dtype) * 2.0**-digits

    def normal(self, slot: int, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, by Box and Muller from the two halves of a word (so at most 6.7 sd).

        Args:
            slot: number of the draw within the operation; the same slot gives the same numbers.
            shape: per sample.
            dtype: floating.

        Returns:
            [B, *shape].
        """
        word = self.bits(slot, shape)
        working = torch.float64 if dtype == torch.float64 else torch.float32
        radius = (((word >> 32) & 0xFFFFFFFF).to(working) + 1).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = (word & 0xFFFFFFFF).to(working).mul_(2 * math.pi * 2.0**-32)
        return (radius * angle.cos_()).to(dtype)

    def bernoulli(self, slot: int, p: float | Tensor, shape: Sequence[int] = ()) -> Tensor:
        """Draw true with probability ``p``.

        Args:
            slot: number of the draw within the operation; the same slot gives the same numbers.
            p: probability of true: a number, or a tensor that broadcasts to the result.
            shape: per sample.

        Returns:
            [B, *shape] bool.
        """
        return self.uniform(slot, shape) < p

    def integers(self, slot: int, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform integers in [low, high); the bias of the modulo is (high - low) / 2⁶³.

        Args:
            slot: number of the draw within the operation; the same slot gives the same numbers.
            low: the lowest.
            high: one more than the highest.
            shape: per sample.

        Returns:
            [B, *shape] int64.
        """
        if high <= low:
            raise ValueError(f"integers are drawn from low to below high, but low={low}, high={high}")
        return (self.bits(slot, shape) & ((1 << 63) - 1)) % (high - low) + low

    def permutation(self, slot: int, n: int) -> Tensor:
        """[B, n] int64, each row a permutation of 0 … n-1."""
        return self.bits(slot, (n,)).argsort(dim=1, stable=True)


def counters(draws: Sequence[Draws], counts: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """The arguments of :func:`uniforms` besides the ids.

    Args:
        draws: one for each operation.
        counts: how many numbers each operation draws per sample.
        device: of the result.

    Returns:
        int64 tensors; they change with the epoch only, and are cached.
    """
    return _counters(tuple(stream._key for stream in draws), tuple(counts), device)


@lru_cache(maxsize=64)
def _counters(keys: tuple[int, ...], counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    first = _mix_word(1)  # of slot 0
    elements = [_signed(first + n * _GAMMA & _WORD) for count in counts for n in range(1, count + 1)]
    owners = [n for n, count in enumerate(counts) for _ in range(count)]
    twins = [_signed(_mix_word(key + _GAMMA)) for key in keys]
    lists = ([_signed(key) for key in keys], twins, owners, elements)
    return tuple(torch.tensor(numbers, dtype=torch.int64).to(device) for numbers in lists)


def uniforms(ids: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
    """[B, sum of the counts]: ``draws.uniform(0, (count,))`` of several draws for the same ids, side by side.

    Args:
        ids: [B] int64.
        constants: from :func:`counters`.
    """
    keys, twins, owners, elements = constants
    starts = _mix_(_mix_(ids[:, None] + keys) ^ twins)
    bits = _mix_(starts[:, owners] + elements)
    digits = _MANTISSA[torch.float32]
    return ((bits >> (64 - digits)) & ((1 << digits) - 1)).float() * 2.0**-digits
