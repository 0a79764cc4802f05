"""A delta file's numbers in fewer bytes, by the formats of :mod:`distill.export.delta.packing`.

``int8`` and ``sign`` keep one fp32 scale per row. Signs suit a dense change (BitDelta); of a low-rank delta's factors
they leave little but the directions' rough sense, so measure the logits. The file loads as any other does: numbers are
float32 again, and merging, training and algebra go on from the rounded ones.
"""

from __future__ import annotations

from pathlib import Path

import torch

from distill.export.delta.io import DeltaManifest
from distill.export.delta.model import DeltaFile, save_opened
from distill.export.delta.packing import Format


def quantize(file: DeltaFile, to: Path, form: Format, head: Format | None) -> DeltaManifest:
    """Write a file with its deltas' fp32 numbers in ``form`` and its head's in ``head`` (None: as they are)."""
    formats: dict[str, Format] = {}
    for chain in file.layers.values():
        for order, link in enumerate(chain):
            names = [name for name, tensor in link.learned.tensors.items() if tensor.dtype == torch.float32]
            formats |= {f"delta/{link.site}.{order}.{name}": form for name in names}
    if head is not None:
        formats |= {name: head for name in file.values if name.startswith("head/")}
    return save_opened(to, file, f"quantize {file.manifest.sha256} to {form}, head {head or 'float32'}", formats)
