"""Reads the file of a checkpoint: its tensors by dotted name, and the options of the training that wrote it.

Nothing unpickles code: a pickle is read with ``weights_only=True`` and a few classes that hold plain values, such as
the ``argparse.Namespace`` that timm's training script saves.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.models.checkpoint_content import INDEX, check_content, is_safetensors, read_shards
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
    """Read a safetensors file, the index of several, or a pickle that holds tensors and plain values.

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
    check_content(path)
    try:
        if path.name.endswith(INDEX):
            content: Any = read_shards(path)
        elif is_safetensors(path):
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_plain_classes()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{path} holds more than plain tensors; that could run code, so it is refused{_classes_in(path)}. If you "
            "trust the file, write its tensors alone into another: torch.save(model.state_dict(), FILE)"
        ) from error
    except NetworkError:
        raise
    except Exception as error:
        if "TorchScript" in str(error):
            raise NetworkError(
                f"{path} is a TorchScript archive, which holds code; load it with torch.jit.load and write its tensors"
                " into another file: torch.save(model.state_dict(), FILE)"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NetworkError(f"{path} cannot be read, or is damaged: {reason}") from error
    tensors = dict(_tensors(content)) or dict(_tensors(content, arrays=True))
    if not tensors:
        raise NetworkError(f"{path} holds no state dict of tensors{_kinds_in(content)}")
    options = content.get("args") if isinstance(content, Mapping) else None
    return Checkpoint(path, tensors, vars(options) if isinstance(options, argparse.Namespace) else {})


def _tensors(content: Any, prefix: str = "", arrays: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings with names for keys; an optimizer's have numbers, so they are left out.

    Numbers are before the names of mappings in a list. With ``arrays``, arrays of NumPy are tensors too.
    """
    if isinstance(content, list | tuple):
        content = {str(number): item for number, item in enumerate(content) if isinstance(item, Mapping)}
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + key, value
        elif arrays and isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            yield prefix + key, torch.from_numpy(np.array(value, order="C"))
        else:
            yield from _tensors(value, f"{prefix}{key}.", arrays)


_CONFIGS = (  # an OrderedDict may have attributes, and PyTorch fills no other kind of mapping
    *("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict"),
    *("mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "munch.Munch", "box.box.Box"),
)


def _kinds_in(content: Any) -> str:
    """What a file without tensors holds, for the error."""
    if isinstance(content, Mapping):
        return f": a mapping with {', '.join(map(repr, list(content)[:5]))}" if content else ": an empty mapping"
    return f": a {type(content).__name__}"


def _plain_classes() -> list[Any]:
    """Classes that hold plain values, by the names that files have for them; none runs code of the file.

    A config that is a mapping (of yacs, MMEngine, EasyDict …) is read as one of plain values.
    """
    numpy_names = ("numpy.core.multiarray", "numpy._core.multiarray")
    multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?SUMm"}
    paths = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    lightning = (
        "lightning.fabric.utilities.data",
        "lightning_fabric.utilities.data",
        "pytorch_lightning.utilities.parsing",
    )
    return [
        argparse.Namespace,
        SimpleNamespace,
        defaultdict,
        datetime.datetime,
        datetime.date,
        datetime.timedelta,
        datetime.timezone,
        np.ndarray,
        np.dtype,
        *dtypes,
        *((multiarray.scalar, f"{module}.scalar") for module in numpy_names),
        *((multiarray._reconstruct, f"{module}._reconstruct") for module in numpy_names),
        *((pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in paths),
        *((dict, f"{module}.AttributeDict") for module in lightning),
        *((OrderedDict, name) for name in _CONFIGS),
    ]


def _classes_in(path: Path) -> str:
    """`` (it names a.B, c.D)``: what a pickle names besides tensors and plain values."""
    try:
        with torch.serialization.safe_globals(_plain_classes()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of an old format does not tell; the refusal stands without the names
        return ""
    return f" (it names {', '.join(sorted(names)[:5])})" if names else ""
