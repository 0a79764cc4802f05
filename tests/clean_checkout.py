"""The tests leave the folder of the repository as they found it: ``git add -A`` takes all that is not ignored."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


class CleanCheckout:
    """A plugin: the test run fails if files of a git checkout are there at its end that git neither knows nor ignores.

    Those that were there at its start do not count. Nothing is looked at outside of a checkout.
    """

    def __init__(self, root: Path):
        self.root = root
        self.before: frozenset[str] = frozenset()
        self.new: list[str] = []

    def pytest_sessionstart(self) -> None:
        self.before = unknown_files(self.root)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self.new = sorted(unknown_files(self.root) - self.before)
        if self.new and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for path in self.new:
            terminalreporter.write_line(f"ERROR: {path} appeared in the checkout during the tests", red=True)


def unknown_files(root: Path) -> frozenset[str]:
    """Files below ``root`` that git neither knows nor ignores, relative to it."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return frozenset()
    return frozenset(done.stdout.split("\0")) - {""}
