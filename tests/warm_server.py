"""Processes of a test's own that do not spend ten seconds on imports.

They are forked from a server that has imported everything once and knows nothing of what the tests have done. One
server serves all tests of a process, so what any of them needs is imported here: whoever comes first starts it.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from pkgutil import iter_modules

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "distill"
PRELOAD = [
    "faulty_run",
    "deadly_stages",
    "deltas_models",
    "augment.kornia_ops.unfused",
    "distill.export.verify",
    "distill.stages.report",
    # A config that names one method imports all of its kind.
    *(
        f"distill.{kind}.{name}"
        for kind in ("deltas", "objectives")
        for _, name, _ in iter_modules([str(PACKAGE / kind)])
    ),
]


def warm_server() -> ForkServerContext:
    """The context whose processes come from the server, which runs afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        folders = (HERE / "training", HERE / "deltas", HERE.parent)  # where it finds its modules
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        forkserver.ensure_running()
    return context


def verify_in_fork(work: Path) -> None:
    """``distill.export.verify`` of a prepared folder, as :func:`distill.export.verify.verify` has it run."""
    from distill.export.checksummed import ExportError
    from distill.export.verify import _fresh_process

    child = warm_server().Process(target=_fresh_process, args=(work,))
    child.start()
    child.join(120)
    child.kill()
    if child.exitcode:
        raise ExportError(f"a process of its own cannot load the export: exit status {child.exitcode}")
