"""The check that the tests leave the checkout clean sees what they leave."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clean_checkout import CleanCheckout, unknown_files


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "draft.txt").write_text("of the one who runs the tests")
    return tmp_path


def finish(plugin: CleanCheckout) -> Any:
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    plugin.pytest_sessionfinish(session, pytest.ExitCode.OK)
    return session.exitstatus


def test_a_file_that_a_test_leaves_fails_the_run(checkout: Path) -> None:
    plugin = CleanCheckout(checkout)
    plugin.pytest_sessionstart()
    (checkout / "run.log").write_text("ignored")
    assert finish(plugin) == pytest.ExitCode.OK and not plugin.new
    (checkout / "net").mkdir()
    (checkout / "net" / "model.safetensors").write_text("")
    assert finish(plugin) == pytest.ExitCode.TESTS_FAILED
    assert plugin.new == ["net/model.safetensors"]


def test_without_a_checkout_nothing_is_looked_at(tmp_path: Path) -> None:
    assert unknown_files(tmp_path) == frozenset()


def test_this_run_is_checked(pytestconfig: pytest.Config) -> None:
    """The plugin is that of the process which started the workers, if there are any."""
    assert pytestconfig.pluginmanager.has_plugin("clean_checkout") != hasattr(pytestconfig, "workerinput")
