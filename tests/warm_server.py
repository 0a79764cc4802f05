"""Processes of a test's own that do not spend ten seconds on imports.

They are forked from a server that has imported everything once and knows nothing of what the tests have done. One
server serves all workers of a test run, so what any test needs is imported here: whoever comes first starts it. If it
has ended, the next who needs it starts another.
"""

import atexit
import fcntl
import json
import multiprocessing
import os
import tempfile
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

HERE = Path(__file__).parent
PRELOAD = [
    "forked_workers",
    "faulty_run",
    "deadly_stages",
    "deltas_models",
    "augment.kornia_ops.unfused",
    "distill.export.verify",
    "distill.stages.report",
    # What a run imports where it is needed.
    "jinja2",
    "sklearn.linear_model",
    "torch.utils.tensorboard",
    # A config that names one method imports all of its kind.
    *(
        f"{package.replace('/', '.')}.{name}"
        for package in ("distill/deltas", "distill/objectives", "distill/stages", "augment/ops", "augment/kornia_ops")
        for _, name, _ in iter_modules([str(HERE.parent / package)])
    ),
    "augment.preview.sheet",
    "distill.experiments.continual",
    "distill.models.timm_models",
    "frozen_heap",
]


RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")
SHARED = Path(tempfile.gettempdir()) / f"warm-server-{RUN}.json"
"""Where the worker that has started the server writes how others reach it."""
_server_pid: int | None = None


def warm_server() -> ForkServerContext:
    """The context whose processes come from the server, which runs afterwards."""
    context = multiprocessing.get_context("forkserver")
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if _lives(_server_pid, server._forkserver_address):
        return context
    _forget(server)
    if RUN is None:
        _start(server)
        return context
    with SHARED.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if not ((content := file.read()) and _connect(server, *json.loads(content))):
            _start(server)
            file.truncate(0)
            file.write(json.dumps([server._forkserver_address, _server_pid, os.getpid(), server._forkserver_alive_fd]))
            atexit.register(SHARED.unlink, missing_ok=True)
    return context


def _lives(pid: int | None, address: str | None) -> bool:
    """Whether the process runs, and its socket, which goes with the worker that started it, is still there."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX" and address is not None and Path(address).exists()


def _forget(server: Any) -> None:
    """Drop what is known of a server that has ended."""
    vars(server).pop("ensure_running", None)
    if server._forkserver_pid is not None:
        os.waitpid(server._forkserver_pid, os.WNOHANG)
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


def _start(server: Any) -> None:
    global _server_pid
    from distill.run.folder import _FOLDER_OF_THE_FIRST_RANK

    server.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        folders = (HERE, HERE / "training", HERE / "deltas", HERE.parent)  # where it finds its modules
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.delenv(_FOLDER_OF_THE_FIRST_RANK, raising=False)  # a run may be open here, and is no child's
        server.ensure_running()
    _server_pid = server._forkserver_pid


def _connect(server: Any, address: str, pid: int, owner: int, alive: int) -> bool:
    """Use the server of another worker, which lives until no worker has its pipe; False if it has ended."""
    global _server_pid
    if not _lives(pid, address):
        return False
    try:
        pipe = os.open(f"/proc/{owner}/fd/{alive}", os.O_WRONLY)
    except OSError:
        return False
    server._forkserver_address, server._forkserver_alive_fd = address, pipe
    server.ensure_running = lambda: None  # its own looks for a child process, and starts one
    _server_pid = pid
    resource_tracker.ensure_running()
    return True


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
