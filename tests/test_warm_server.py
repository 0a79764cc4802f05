"""The warm server that the tests share is started anew when it has ended."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest
import warm_server

from distill.run.folder import _FOLDER_OF_THE_FIRST_RANK


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of this test's own, which imports next to nothing."""
    server = forkserver.ForkServer()
    monkeypatch.setattr(forkserver, "_forkserver", server)
    monkeypatch.setattr(forkserver, "connect_to_new_process", server.connect_to_new_process)
    monkeypatch.setattr(warm_server, "PRELOAD", ["forked_workers"])
    monkeypatch.setattr(warm_server, "RUN", "of a test")
    monkeypatch.setattr(warm_server, "SHARED", tmp_path / "server.json")
    monkeypatch.setattr(warm_server, "_server_pid", None)


def run_a_process() -> None:
    process = warm_server.warm_server().Process(target=os.getpid)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def write_start_method(path: Path) -> None:
    path.write_text(multiprocessing.get_start_method())


def write_names(path: Path) -> None:
    path.write_text("\n".join(os.environ))


def forget() -> None:
    """What another worker knows: nothing but what is in the file."""
    forkserver._forkserver.__init__()  # type: ignore[misc]
    warm_server._server_pid = None


@pytest.mark.usefixtures("cold")
def test_who_finds_the_server_killed_starts_another() -> None:
    run_a_process()
    first = warm_server._server_pid
    assert first is not None
    forget()
    run_a_process()
    assert warm_server._server_pid == first, "one for all workers"
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    run_a_process()
    second = warm_server._server_pid
    assert second not in (None, first)
    os.kill(second, signal.SIGKILL)  # a child of this process that nobody has waited for
    while warm_server._lives(second, forkserver._forkserver._forkserver_address):  # type: ignore[attr-defined]
        pass
    run_a_process()
    third = warm_server._server_pid
    assert third not in (None, first, second)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("cold")
def test_a_childs_own_workers_are_started_as_ours_are(tmp_path: Path) -> None:
    """By a further server, each of them would import everything again."""
    process = warm_server.warm_server().Process(target=write_start_method, args=(tmp_path / "method",))
    process.start()
    process.join(60)
    assert (tmp_path / "method").read_text() == multiprocessing.get_start_method()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("cold")
def test_a_run_that_is_open_is_not_a_childs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_FOLDER_OF_THE_FIRST_RANK, str(tmp_path))
    process = warm_server.warm_server().Process(target=write_names, args=(tmp_path / "names",))
    process.start()
    process.join(60)
    names = (tmp_path / "names").read_text().split("\n")
    assert "PYTHONPATH" in names and _FOLDER_OF_THE_FIRST_RANK not in names
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
