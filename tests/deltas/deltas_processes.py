"""Functions run in processes that share nothing with the tests' own but what a fresh interpreter would import."""

import os
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


def run_apart(function: Callable[..., None], arguments: tuple[Any, ...], count: int = 1) -> None:
    """``function(rank, *arguments)`` in ``count`` processes at once; what one raises is raised here.

    They are forked from a server that has imported torch and timm once, which is what a fresh interpreter takes its
    time for. The server knows nothing of what the tests have done.
    """
    forkserver.set_forkserver_preload(["deltas_models", "distill.export.delta.io", "distill.models.network"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{HERE.parents[1]}")  # where it finds its modules
        forkserver.ensure_running()
    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")
