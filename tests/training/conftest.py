"""Fixtures of the training tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import StartRun


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartRun]:
    """Starts runs as processes of their own; what is left of them is killed afterwards."""
    starting = StartRun(tmp_path)
    yield starting
    starting.end()
