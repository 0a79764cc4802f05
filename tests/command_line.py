"""Calls of the command line in this process, and a small experiment on image files for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill import cli
from distill.config import merge_trees
from distill.yaml_tree import dump_yaml

CLASSES = ("cat", "dog")
SPLITS = {"train": 6, "val": 2, "test": 3}
"""Images of each class."""


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return end.value.code if isinstance(end.value.code, int) else 0, told.out, told.err


def write_images(root: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """Random images of 40 × 40 pixels, ``root/SPLIT/CLASS/N.png``."""
    random = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def write_config(path: Path, root: Path | str, **changes: Any) -> Path:
    """An experiment that fits a teacher on the images and trains a student, one epoch of three steps each."""
    network = {"pretrained": False, "size": 32}
    training = {"epochs": 1, "accelerator": "cpu"}
    tree = {
        "name": "small",
        "output": "runs",
        "data": {"source": {"type": "folder", "root": str(root)}, "size": 32, "batch_size": 4, "workers": 0},
        "augment": {"student": ["RandomHorizontalFlip"], "compile": False},
        "teacher": {"networks": [{"model": "test_resnet", **network}]},
        "fit_teacher": {"training": training},
        "student": {
            "network": {"model": "test_efficientnet", **network},
            "deltas": [{"type": "low_rank", "rank": 1}],
        },
        "objectives": [{"type": "ce"}, {"type": "kd"}],
        "training": training,
        "controls": {"linear_probe": False, "labels_only": False},
        "export": {"verify_images": 4},
    }
    path.write_text(dump_yaml(merge_trees(tree, changes)), encoding="utf-8")
    return path
