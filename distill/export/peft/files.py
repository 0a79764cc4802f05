"""The two files of a peft adapter, and a manifest that tells whether an adapter is still the one that was exported.

``adapter_config.json`` and ``adapter_model.safetensors`` as peft reads and writes them. An exported folder also has the
delta file that it was made from, and ``peft.json``, a :class:`PeftManifest`; peft ignores both. So the way back is
bit-equal as long as the adapter is unchanged, and the backbone's SHA-256 stays with the adapter. An adapter that is a
pickle is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from distill.export.checksummed import (
    Checksummed,
    ExportError,
    read_checked,
    read_checksummed,
    read_inside,
    write_checksummed,
)
from distill.export.delta.io import MANIFEST as DELTA_MANIFEST
from distill.export.delta.io import TENSORS as DELTA_TENSORS
from distill.export.delta.io import DeltaManifest, read_delta
from distill.files import write_atomic

CONFIG, TENSORS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "peft.json"
PREFIX = "base_model.model."
"""What the names of an adapter's tensors begin with; a layer's name follows."""


@dataclass(frozen=True)
class PeftAdapter:
    """The content of a peft adapter."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """By their names in the file, without :data:`PREFIX`."""


class PeftManifest(Checksummed):
    """The content of ``peft.json``: SHA-256 of every other file of an exported adapter."""

    files: dict[str, str]


def write_adapter(folder: Path, adapter: PeftAdapter, delta: Path) -> None:
    """Write an adapter, the delta file that it was made from, and the manifest over both.

    Args:
        folder: where to write; it is made if it does not exist.
        adapter: its content.
        delta: folder of the delta file.
    """
    tensors = {PREFIX + name: tensor.contiguous().clone() for name, tensor in adapter.tensors.items()}
    manifest, _ = read_delta(delta)
    contents = {
        TENSORS: safetensors.torch.save(tensors, {"format": "pt"}),
        CONFIG: (json.dumps(adapter.config, indent=2, sort_keys=True) + "\n").encode(),
        DELTA_TENSORS: read_checked(delta, DELTA_TENSORS, manifest.sha256),
        DELTA_MANIFEST: read_inside(delta, DELTA_MANIFEST),
    }
    hashes = {name: write_atomic(folder / name, data) for name, data in contents.items()}
    write_checksummed(folder / MANIFEST, PeftManifest(files=hashes))


def read_adapter(folder: Path) -> PeftAdapter:
    """Read an adapter, without unpickling.

    Raises:
        ExportError: a file is absent or damaged, or the adapter is a pickle.
    """
    if not (folder / TENSORS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ExportError(
                f"{folder / 'adapter_model.bin'} is a pickle, which can run code when it is read. Write it as "
                "safetensors where you trust it: load it with peft and call model.save_pretrained(folder)"
            )
        raise ExportError(f"{folder}: holds no {TENSORS}, so it is no folder of a peft adapter")
    try:
        config = json.loads(read_inside(folder, CONFIG))
        tensors = safetensors.torch.load(read_inside(folder, TENSORS))
    except (ValueError, SafetensorError) as error:
        raise ExportError(f"{folder}: damaged, or no peft adapter: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{folder / CONFIG}: expected settings, found {type(config).__name__}")
    foreign = [name for name in tensors if not name.startswith(PREFIX)]
    if foreign:
        raise ExportError(f"{folder / TENSORS}: names begin with {PREFIX!r}, found {', '.join(foreign[:3])}")
    return PeftAdapter(config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})


def exported_from(folder: Path) -> tuple[DeltaManifest | None, bool]:
    """The delta file beside an adapter: its manifest, and whether the adapter is still the one that was made from it.

    Raises:
        ExportError: a file of the delta file is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return None, False
    files = read_checksummed(folder / MANIFEST, PeftManifest).files
    manifest, _ = read_delta(folder)
    same = all(hashlib.sha256(read_inside(folder, name)).hexdigest() == files.get(name) for name in (CONFIG, TENSORS))
    if hashlib.sha256(read_inside(folder, DELTA_MANIFEST)).hexdigest() != files.get(DELTA_MANIFEST):
        raise ExportError(f"{folder}: {DELTA_MANIFEST} is not the one that {MANIFEST} names")
    return manifest, same
