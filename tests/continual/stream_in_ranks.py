"""Streams in two ranks, each in a folder. See its test."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from spare_rank import with_spare_rank
from toy_stream import learn_only, stream

from distill.experiments.continual import ContinualExperiment

STREAMS: dict[str, dict[str, Any]] = {
    "replay": {
        "memory": {"type": "keyed", "budget": 6, "logits": True},
        "objectives": [{"type": "er_ace"}, {"type": "der"}],
        "regularizers": [{"type": "ewc", "weight": 10, "samples": 8}, {"type": "si"}, {"type": "l2", "weight": 0.1}],
    },
}
"""Streams that must come out the same in one rank and in two."""


def settings_of(output: Path, name: str, devices: int = 1) -> ContinualExperiment:
    changes = {**STREAMS[name], "strategy": {"type": "sequential"}, "training": {"devices": devices}}
    return stream(output / name, **changes)


def learn_alone(output: Path, name: str, devices: int = 1) -> Path:
    """Learn a stream with its student alone; returns the folder of the run."""
    return learn_only(settings_of(output, name, devices))


def run(arguments: list[str]) -> None:
    [output] = map(Path, arguments)
    warnings.simplefilter("error")
    for name in STREAMS:
        learn_alone(output, name, devices=2)


def forked(output: str) -> None:
    """``run`` as the first rank, in a child of a process that has imported everything; the second is its child."""
    # What Lightning starts further ranks with.
    sys.argv = [__file__, output]
    sys.modules["__main__"].__spec__ = None
    with_spare_rank(run)
    run([output])
