"""Fixtures of the export tests."""

from pathlib import Path

import pytest
from export_students import Trained, make_backbone, train

from distill.deltas.low_rank import LowRank
from distill.deltas.scale_shift import ScaleShift


@pytest.fixture
def trained() -> Trained:
    """Two deltas on many layers of a CNN."""
    specs = [LowRank.Settings(rank=2), ScaleShift.Settings(sites=("*.conv_dw", "bn1"))]
    return train(make_backbone(), specs, moved=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "export"
