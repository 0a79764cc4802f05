"""Offsite-tuning of a tiny ViT of six blocks, of which the emulator keeps four."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from toy_training import network, tree

from distill.commands.offsite import make_emulator
from distill.config import merge_trees, validate_tree
from distill.experiments.offsite import OffsiteExperiment
from distill.models.settings import NetworkSettings


def offsite_tree(output: Path, **changes: Any) -> dict[str, Any]:
    """The config: blocks 0 and 5 are tuned, the middle is distilled, one epoch each."""
    plain = tree(output, name="offsite")
    del plain["teacher"]
    own = {
        "kind": "offsite",
        "front": ["blocks.0"],
        "back": ["blocks.5"],
        "keep": 0.5,
        "distill": {"accelerator": "cpu"},
        "augment": {"policy": "identical"},
        "student": {"network": network(output, "test_vit"), "deltas": [{"type": "low_rank", "rank": 2}]},
        "objectives": [{"type": "ce"}],
        "training": {"epochs": 1},
    }
    return merge_trees(merge_trees(plain, own), changes)


def offsite(output: Path, **changes: Any) -> OffsiteExperiment:
    """The typed experiment of :func:`offsite_tree`."""
    made = validate_tree(offsite_tree(output, **changes), "toy")
    assert isinstance(made, OffsiteExperiment)
    return made


def full(output: Path) -> NetworkSettings:
    """The owner's network."""
    return NetworkSettings.model_validate(network(output, "test_vit"))


def give(output: Path) -> Path:
    """An emulator as ``distill emulator`` writes it, undistilled."""
    make_emulator(offsite(output, distill=None), output / "given", Console(quiet=True))
    return output / "given"
