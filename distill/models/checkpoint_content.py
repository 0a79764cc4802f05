"""What a checkpoint's file is by its first bytes, and safetensors files in several parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from distill.models.weights import NetworkError

INDEX = ".safetensors.index.json"
_PART = re.compile(r"(.+)-\d+-of-(\d+)(\.\w+)$")
_WRITE_TENSORS = "write its tensors into another: torch.save(model.state_dict(), FILE)"
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    (b"<", "a web page or XML, not a checkpoint; was the download refused?"),
    (b"\x89HDF", f"HDF5, which Keras writes; load it there and {_WRITE_TENSORS}"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
)


def is_safetensors(path: Path) -> bool:
    """Whether a file is of the format safetensors, by its name or its first bytes."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def check_content(path: Path) -> None:
    """Raise ``NetworkError`` for a file that is no checkpoint, or a part of one, and say what it is."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise NetworkError(f"{path} is empty")
    for signature, what in _OTHERS:
        if start.startswith(signature):
            raise NetworkError(f"{path} is {what}")
    if path.suffix.lower() == ".onnx":
        raise NetworkError(
            f"{path} is ONNX, which has no network's tensors by name; load the network and {_WRITE_TENSORS}"
        )
    if path.suffix.lower() == ".safetensors" and start[:2] in (b"PK", b"\x80\x02"):
        raise NetworkError(f"{path} is no safetensors file but a pickle of PyTorch; name it .pth")
    if (part := _PART.match(path.name)) and int(part[2]) > 1:
        index = path.with_name(f"{part[1]}{part[3]}.index.json")
        raise NetworkError(f"{path} is one of {part[2]} parts; name their index, {index}")


def read_shards(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index names.

    Raises:
        NetworkError: it is no index, or a file that it names is missing or in another folder.
    """
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"{path} is no index of safetensors files: it has no weight_map") from error
    tensors: dict[str, Any] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise NetworkError(f"{path} names {name!r}, which is no file beside it")
        if not (path.parent / name).is_file():
            raise NetworkError(f"{path} names {name}, and there is no such file beside it")
        tensors |= load_file(path.parent / name)
    return tensors
