"""Tensors in fewer bytes: half precision, 8-bit integers, or one bit per sign; and booleans as bits.

A packed tensor is stored in the safetensors file under its own name, its scales (fp32) under ``<name>/scale``; the
manifest has ``<format>[<shape>]`` for it. For a row x of n numbers:

=========  ========================================  ==============================  ===============================
format     stored                                    bytes                           error
=========  ========================================  ==============================  ===============================
float16    x in half precision                       2 n                             |x| / 2048, below 6e-5: 3e-8
int8       s = max|x| / 127 and round(x / s)         n + 4                           s / 2
sign       s = mean|x| and the signs (BitDelta)      ⌈n / 8⌉ + 4 (all rows' bits     least squares among ± s
                                                     in one run)
bits       booleans                                  ⌈n / 8⌉                         none
=========  ========================================  ==============================  ===============================

A row of a weight is one output channel. A low-rank factor [groups, a, b] has its rows along the longer of a and b: one
per rank, which costs the fewest scales. A vector (bias, scale) has no rows and is stored as float16 instead of int8 or
sign.

Paper: Liu et al., BitDelta, arXiv 2402.10193 (sign; there of whole weights, per matrix).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distill.export.checksummed import ExportError

Format = Literal["float16", "int8", "sign"]

_MARK = re.compile(r"^(?P<format>float16|int8|sign|bits)\[(?P<shape>[\d,]*)\]$")
_STORED = {"float16": torch.float16, "int8": torch.int8, "sign": torch.uint8, "bits": torch.uint8}


def pack(tensors: Mapping[str, Tensor], formats: Mapping[str, Format]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Pack tensors: what to store, and a mark for each packed tensor, which :func:`unpack` reads.

    Args:
        tensors: by name, on the CPU.
        formats: by tensor name. Tensors not named stay as they are; booleans become bits anyway.

    Raises:
        ExportError: a tensor that is not float32 cannot be rounded, or a number is too large for half precision.
    """
    stored, marks = dict(tensors), {}
    for name, tensor in tensors.items():
        requested = formats.get(name)
        if tensor.dtype == torch.bool:
            kind, stored[name] = "bits", _bits(tensor)
        elif requested is None:
            continue
        elif tensor.dtype != torch.float32:
            raise ExportError(f"{name}: only float32 can be stored as {requested}, this is {tensor.dtype}")
        elif requested == "float16" or tensor.ndim < 2:
            kind, stored[name] = "float16", tensor.half()
            if not stored[name].isfinite().all():
                raise ExportError(f"{name}: {float(tensor.abs().max()):g} is more than half precision can hold")
        else:
            kind, rows = requested, _rows(tensor)
            stored[f"{name}/scale"] = scale = _scale(rows, kind)
            stored[name] = _whole(rows, scale).to(torch.int8) if kind == "int8" else _bits(rows >= 0)
        marks[name] = f"{kind}[{','.join(map(str, tensor.shape))}]"
    return stored, marks


def unpack(stored: Mapping[str, Tensor], marks: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors that :func:`pack` was given, in float32 and bool, float32 up to rounding.

    Raises:
        ExportError: a mark that does not fit what is stored.
    """
    tensors = dict(stored)
    for name, mark in marks.items():
        match = _MARK.match(mark)
        shape = tuple(int(size) for size in match["shape"].split(",") if size) if match else ()
        if not match or name not in stored or stored[name].dtype != _STORED[match["format"]]:
            raise ExportError(f"{name}: is not stored as {mark!r}")
        kind, value = match["format"], stored[name]
        try:
            if kind == "float16":
                tensors[name] = value.float().reshape(shape)
            elif kind == "bits":
                tensors[name] = _booleans(value, prod(shape)).reshape(shape)
            else:
                scale = tensors.pop(f"{name}/scale")
                numbers = value.float() if kind == "int8" else _booleans(value, prod(shape)).float() * 2 - 1
                tensors[name] = _from_rows(numbers.reshape(len(scale), -1) * scale[:, None], shape)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ExportError(f"{name}: what is stored does not fit {mark!r}") from error
    return tensors


def rounded(tensor: Tensor, form: Format) -> Tensor:
    """An fp32 tensor as :func:`unpack` gives it back after :func:`pack`, up to the rounding of fp32; on any device.

    Rounding twice is rounding once, also up to fp32.
    """
    if form == "float16" or tensor.ndim < 2:
        return tensor.half().float()
    rows = _rows(tensor)
    scale = _scale(rows, form)
    numbers = _whole(rows, scale) if form == "int8" else (rows >= 0).float() * 2 - 1
    return _from_rows(numbers * scale[:, None], tuple(tensor.shape))


def _scale(rows: Tensor, form: Format) -> Tensor:
    return rows.abs().amax(1) / 127 if form == "int8" else rows.abs().mean(1)


def _whole(rows: Tensor, scale: Tensor) -> Tensor:
    """Rows in units of their scale; a row of zeros has scale 0, and may be divided by any number."""
    return (rows / scale.where(scale > 0, 1)[:, None]).round().clamp(-127, 127)


def _lies_across(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[1] > shape[2]


def _rows(tensor: Tensor) -> Tensor:
    if tensor.ndim != 3:
        return tensor.flatten(1)
    return (tensor.transpose(1, 2) if _lies_across(tensor.shape) else tensor).flatten(0, 1)


def _from_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    if _lies_across(shape):
        return rows.reshape(shape[0], shape[2], shape[1]).transpose(1, 2).contiguous()
    return rows.reshape(shape)


def _bits(flags: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(flags.contiguous().numpy().reshape(-1)))


def _booleans(bits: Tensor, count: int) -> Tensor:
    if len(bits) != -(-count // 8):
        raise ValueError(f"{len(bits)} bytes for {count} bits")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))
