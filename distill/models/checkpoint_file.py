"""Reads the file of a checkpoint: its tensors by dotted name, and the options of the training that wrote it.

Nothing unpickles code: a pickle is read with ``weights_only=True`` and a few classes that hold plain values, such as
the ``argparse.Namespace`` that timm's training script saves.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.models.weights import NetworkError


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file."""

    path: Path
    tensors: dict[str, Tensor]
    """By name; the tensors of a nested mapping have its key before their names: ``state_dict.conv1.weight``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of timm's training script: ``model``, ``img_size``, ``mean`` …; empty for other files."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a ``.safetensors`` file, or a pickle that holds tensors and plain values.

    Raises:
        NetworkError: there is no such file, it is damaged, it holds no tensors, or it names other classes.
    """
    if path.is_dir():
        raise NetworkError(
            f"{path} is a folder, and checkpoint: takes a file; a timm folder is model: local-dir:{path}, "
            "and the folder of a delta file is the key delta of a teacher's network"
        )
    if not path.is_file():
        raise NetworkError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_plain_classes()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{path} holds more than plain tensors; that could run code, so it is refused{_classes_in(path)}. If you "
            "trust the file, write its tensors alone into another: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NetworkError(f"{path} cannot be read, or is damaged: {reason}") from error
    tensors = dict(_tensors(content))
    if not tensors:
        raise NetworkError(f"{path} holds no state dict of tensors")
    options = content.get("args")
    return Checkpoint(path, tensors, vars(options) if isinstance(options, argparse.Namespace) else {})


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings with names for keys; an optimizer's have numbers, so they are left out."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield from _tensors(value, f"{prefix}{key}.")


def _plain_classes() -> list[Any]:
    """Classes that hold plain values, by the names that files have for them; none runs code of the file."""
    numpy_names = ("numpy.core.multiarray", "numpy._core.multiarray")
    multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]
    dtypes = [getattr(np.dtypes, name) for name in ("Float16DType", "Float32DType", "Float64DType", "Int32DType")]
    dtypes += [getattr(np.dtypes, name) for name in ("Int64DType", "UInt8DType", "BoolDType")]
    paths = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    lightning = (
        "lightning.fabric.utilities.data",
        "lightning_fabric.utilities.data",
        "pytorch_lightning.utilities.parsing",
    )
    return [
        argparse.Namespace,
        defaultdict,
        np.ndarray,
        np.dtype,
        *dtypes,
        *((multiarray.scalar, f"{module}.scalar") for module in numpy_names),
        *((multiarray._reconstruct, f"{module}._reconstruct") for module in numpy_names),
        *((pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in paths),
        *((dict, f"{module}.AttributeDict") for module in lightning),
    ]


def _classes_in(path: Path) -> str:
    """`` (it names a.B, c.D)``: what a pickle names besides tensors and plain values."""
    try:
        with torch.serialization.safe_globals(_plain_classes()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of an old format does not tell; the refusal stands without the names
        return ""
    return f" (it names {', '.join(sorted(names)[:5])})" if names else ""
