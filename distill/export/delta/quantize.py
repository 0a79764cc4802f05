"""A delta file's numbers in fewer bytes, by the formats of :mod:`distill.export.delta.packing`.

``int8`` and ``sign`` keep one fp32 scale per row. ``sign`` suits dense deltas (BitDelta); on the factors of low-rank
deltas its error is large, so measure the logits. The file loads as any other: its numbers are float32 again, rounded,
and can be merged, trained and combined.
"""

from __future__ import annotations

from pathlib import Path

import torch

from distill.export.delta.io import DeltaManifest
from distill.export.delta.model import DeltaFile, save_delta_file
from distill.export.delta.packing import Format


def quantize(file: DeltaFile, to: Path, form: Format, head: Format | None) -> DeltaManifest:
    """Write a file whose fp32 tensors are stored in fewer bytes.

    Args:
        file: what to store.
        to: the folder to write.
        form: format of the deltas' fp32 tensors; others stay as they are.
        head: format of the head's tensors; None: as they are.

    Returns:
        The content of the new ``delta.json``.
    """
    formats: dict[str, Format] = {}
    for chain in file.layers.values():
        for order, link in enumerate(chain):
            names = [name for name, tensor in link.learned.tensors.items() if tensor.dtype == torch.float32]
            formats |= {f"delta/{link.site}.{order}.{name}": form for name in names}
    if head is not None:
        formats |= {name: head for name in file.values if name.startswith("head/")}
    return save_delta_file(to, file, f"quantize {file.manifest.sha256} to {form}, head {head or 'float32'}", formats)
