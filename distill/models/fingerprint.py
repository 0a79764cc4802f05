"""Fingerprint of a backbone: SHA-256 of every tensor and of all together, independent of file and memory layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from augment.base import Settings


class Fingerprint(Settings):
    """Hashes of a backbone's tensors, with which a delta file is checked against a backbone."""

    sha256: str
    """SHA-256 of all names and tensor fingerprints."""
    tensors: dict[str, str]
    """Name → ``dtype[shape] sha256``, sorted by name."""


def tensor_fingerprint(tensor: Tensor) -> str:
    """``dtype[shape] sha256``, the SHA-256 of the values in row-major order, little-endian as torch holds them.

    It does not depend on memory layout (channels_last), on the device or on whether the tensor is a parameter, but on
    the sign of a zero.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    shape = ",".join(map(str, tensor.shape))
    digest = hashlib.sha256(flat.view(torch.uint8).numpy().data)
    return f"{str(tensor.dtype).removeprefix('torch.')}[{shape}] {digest.hexdigest()}"


def fingerprint(state: Mapping[str, Tensor]) -> Fingerprint:
    """The fingerprint of a state dict; it does not depend on the order of the names."""
    tensors = {name: tensor_fingerprint(state[name]) for name in sorted(state)}
    lines = "".join(f"{name} {mark}\n" for name, mark in tensors.items())
    return Fingerprint(sha256=hashlib.sha256(lines.encode()).hexdigest(), tensors=tensors)


def differences(expected: Fingerprint, actual: Fingerprint) -> list[str]:
    """One line per tensor that is missing, unexpected, or of another shape, dtype or value; empty if equal."""
    lines = [f"missing {name}" for name in expected.tensors if name not in actual.tensors]
    lines += [f"unexpected {name}" for name in actual.tensors if name not in expected.tensors]
    both = [(n, actual.tensors[n], mark) for n, mark in expected.tensors.items() if n in actual.tensors]
    shapes = [(name, got.split()[0], want.split()[0]) for name, got, want in both]
    lines += [f"{name} is {got}, expected {want}" for name, got, want in shapes if got != want]
    lines += [f"{n} has other values" for n, got, want in both if got != want and got.split()[0] == want.split()[0]]
    return lines
