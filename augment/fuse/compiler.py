"""What carries the passes out: torch's operators, torch.compile, or the passes in C."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

from augment.fuse.passes import NoCompiler, library

Compile = Literal["auto"] | bool
Way = Literal["torch", "torch.compile", "C"]


@cache
def way_on(device: str, wanted: Compile) -> Way:
    """How the passes are made on a type of device. What cannot be compiled is done by torch's operators."""
    if not wanted:
        return "torch"
    missing = missing_compiler(device)
    if not missing:
        return "C" if device == "cpu" else "torch.compile"
    # Nobody asked a machine without a compiler for C; but a GPU is there for speed.
    if wanted is True or device != "cpu":
        warnings.warn(f"augmentation runs without compiled passes: {missing}", stacklevel=2)
    return "torch"


def missing_compiler(device: str) -> str:
    """What is missing to compile for a type of device; nothing if nothing is."""
    if device == "cpu":
        try:
            library()
        except NoCompiler as error:
            return str(error)
        return ""
    from torch.utils._triton import has_triton

    return "" if has_triton() else "Triton is not installed, or does not know this GPU"
