"""Functions run in processes that share nothing with the tests' own but what a fresh interpreter would import."""

from collections.abc import Callable
from typing import Any

import torch
from warm_server import warm_server


def run_apart(function: Callable[..., None], arguments: tuple[Any, ...], count: int = 1) -> None:
    """``function(rank, *arguments)`` in ``count`` processes at once; what one raises is raised here.

    They come from the :func:`warm_server.warm_server`, which knows nothing of what the tests have done.
    """
    warm_server()
    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")
