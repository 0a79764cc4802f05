"""What the README shows works: its code blocks run, its paths exist, its commands are the command line's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distill.config import merge_trees, validate_tree

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_settings_shown_are_valid() -> None:
    network = {"model": "resnet50.a1_in1k"}
    around = {
        "name": "shown",
        "data": {"source": {"type": "digits"}},
        "teacher": {"networks": [network]},
        "student": {"network": network},
        "objectives": ["kd"],
    }
    shown = [yaml.safe_load(block) for block in blocks("yaml")]
    assert shown
    for part in shown:
        validate_tree(merge_trees(around, part), "README.md")


def test_paths_exist() -> None:
    named = set(re.findall(r"`((?:augment|distill|configs|benchmarks)/[\w/.]*)`", README))
    named |= set(re.findall(r"\]\(([\w/.]+)\)", README))
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_commands_exist() -> None:
    from distill.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    shown = set(re.findall(r"^distill (\w+)", README, flags=re.MULTILINE))
    assert shown <= known and {"train", "evaluate", "export", "verify", "preview", "doctor", "schema"} <= known


@pytest.mark.slow
def test_quickstart_and_the_student_elsewhere(tmp_path: Path) -> None:
    """A short quickstart, then both blocks of 'The student elsewhere' in a process that starts from the files."""
    short = ["training.epochs=1", "fit_teacher.training.epochs=1", "data.workers=0"]
    # An epoch is one step for the teacher, on 20 images, and three for the student.
    short += ["fit_teacher.labels=same", "data.batch_size=400", "export.verify_images=8"]
    short += ["teacher.networks.0.size=32", "student.network.size=32", "controls.labels_only=false"]
    command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/quickstart.yaml"), *short]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    merged = next(block for block in blocks("python") if "timm.create_model" in block)
    delta = next(block for block in blocks("python") if "load_delta" in block)
    compare = (
        "import torch\nx = torch.randn(4, 3, 64, 64)\nwith torch.no_grad():\n"
        "    a, b = model(x), student(x)\nassert (a - b).abs().max() <= 1e-5 * b.abs().max()\n"
        "assert transform.transforms and model.num_classes == 10\n"
    )
    script = merged + delta + compare
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
