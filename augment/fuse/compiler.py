"""Whether torch.compile makes the passes, and whether it can."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

Compile = Literal["auto"] | bool


@cache
def compiles(wanted: Compile, device: str) -> bool:
    """Whether the passes are compiled on a type of device."""
    if wanted is False or (wanted == "auto" and device == "cpu"):
        return False
    missing = _missing_compiler(device)
    if missing:
        warnings.warn(f"augmentation runs without torch.compile: {missing}", stacklevel=2)
    return not missing


def _missing_compiler(device: str) -> str:
    if device != "cpu":
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton is not installed, or does not know this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler is found; install g++, or set CXX"
    return ""
