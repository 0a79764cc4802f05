"""Choose how passes are computed: torch's operators, torch.compile, or C."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

from augment.fuse.passes import NoCompiler, library

Compile = Literal["auto"] | bool
Backend = Literal["torch", "torch.compile", "C"]


@cache
def backend_for(device: str, compile: Compile) -> Backend:
    """How the passes are computed on a type of device; by torch's operators if nothing can be compiled."""
    if not compile:
        return "torch"
    missing = missing_compiler(device)
    if not missing:
        return "C" if device == "cpu" else "torch.compile"
    # Under "auto" a CPU without a C compiler is no reason to warn; a GPU that cannot compile is.
    if compile is True or device != "cpu":
        warnings.warn(f"augmentation runs without compiled passes: {missing}", stacklevel=2)
    return "torch"


def missing_compiler(device: str) -> str:
    """What is missing to compile for a type of device; an empty string if nothing is."""
    if device == "cpu":
        try:
            library()
        except NoCompiler as error:
            return str(error)
        return ""
    from torch.utils._triton import has_triton

    return "" if has_triton() else "Triton is not installed, or does not support this GPU"
