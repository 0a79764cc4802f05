"""Moments of what the batch norms read in training, beside a delta file: an adaptation aligns its statistics with them.

A delta folder may hold ``source_moments.safetensors``, the mean and the variance [C] of the inputs of every batch norm
over training images, and ``source_moments.json`` with its SHA-256 and that of the delta. With them
:func:`distill.transfer.moments.aligned` gives images of another domain the moments of these, without these images.
Loading and merging a delta does not need them; a delta that is made from others has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
from torch import Tensor

from distill.export.checksummed import Checksummed, ExportError, read_checked, read_checksummed, write_checksummed
from distill.export.delta.io import MANIFEST, DeltaManifest
from distill.files import write_atomic

TENSORS, ABOUT = "source_moments.safetensors", "source_moments.json"


class SourceMomentsManifest(Checksummed):
    """The content of ``source_moments.json``."""

    schema_version: Literal[1] = 1
    delta: str
    """SHA-256 of the ``delta.safetensors`` whose network they were measured with."""
    sha256: str
    """Of ``source_moments.safetensors``."""


def write_source_moments(folder: Path, moments: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """Write moments beside a delta file.

    Args:
        folder: of the delta file.
        moments: site of a batch norm → mean and variance [C]; empty: none are written, and those of an earlier delta in
            the folder are deleted.

    Returns:
        The bytes of the tensors.
    """
    if not moments:
        for name in (ABOUT, TENSORS):
            (folder / name).unlink(missing_ok=True)
        return 0
    tensors = {f"{name}/{site}": own for site, pair in moments.items() for name, own in zip(("mean", "var"), pair)}
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    delta = read_checksummed(folder / MANIFEST, DeltaManifest).sha256
    manifest = SourceMomentsManifest(delta=delta, sha256=write_atomic(folder / TENSORS, data))
    write_checksummed(folder / ABOUT, manifest)
    return len(data)


def read_source_moments(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The moments beside a delta file: site of a batch norm → mean and variance [C]; empty if there are none.

    Raises:
        ExportError: a file is damaged, or they belong to another delta.
    """
    if not (folder / ABOUT).exists():
        return {}
    manifest = read_checksummed(folder / ABOUT, SourceMomentsManifest)
    if manifest.delta != (own := read_checksummed(folder / MANIFEST, DeltaManifest).sha256):
        raise ExportError(f"{folder / ABOUT}: belongs to the delta {manifest.delta[:12]}, and this one is {own[:12]}")
    tensors = safetensors.torch.load(read_checked(folder, TENSORS, manifest.sha256))
    sites = [name.removeprefix("mean/") for name in tensors if name.startswith("mean/")]
    return {site: (tensors[f"mean/{site}"], tensors[f"var/{site}"]) for site in sites}
