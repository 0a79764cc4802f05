"""What the README shows works: its code blocks run, its paths exist, its commands are the command line's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from blank_figures import blank_figures
from faulty_run import train_py
from sklearn import datasets
from warm_server import warm_server

from distill.config import merge_trees, validate_tree
from distill.export import verify

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


def quickstart(folder: str, changes: list[str]) -> None:
    """The quickstart's command on the first 400 digits, in a child of the warm server."""
    os.chdir(folder)
    digits = datasets.load_digits()
    datasets.load_digits = lambda: SimpleNamespace(images=digits.images[:400], target=digits.target[:400])
    # What takes a fresh interpreter, or seconds of drawing, has tests of its own.
    verify._run_fresh = verify._fresh_process
    blank_figures(pytest.MonkeyPatch())
    train_py([str(ROOT / "configs/quickstart.yaml"), *changes], {}, "output.txt")


def elsewhere(folder: str, script: str) -> None:
    """Blocks of the README, in a child of the warm server that knows nothing of the run but its files."""
    os.chdir(folder)
    exec(compile(script, "README.md", "exec"), {"__name__": "__main__"})


def test_python_shown_runs() -> None:
    [first, *_] = blocks("python")
    assert "create_student" in first
    exec(compile(first, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_quickstart_and_the_student_elsewhere(tmp_path: Path) -> None:
    """A short quickstart, then both blocks of 'The student elsewhere' in a process that starts from the files."""
    short = ["training.epochs=1", "fit_teacher.training.epochs=1", "data.workers=0"]
    # An epoch is one step for the teacher, whose 20 images are repeated to fill it, and two for the student.
    short += ["fit_teacher.labels=same", "data.batch_size=160", "export.verify_images=8"]
    short += ["teacher.networks.0.size=32", "student.network.size=32", "controls.labels_only=false"]
    assert run_apart(quickstart, str(tmp_path), short) == 0, (tmp_path / "output.txt").read_text()
    assert "verified" in (tmp_path / "output.txt").read_text()
    merged = next(block for block in blocks("python") if "timm.create_model" in block)
    delta = next(block for block in blocks("python") if "load_delta" in block)
    compare = (
        "import torch\nx = torch.randn(4, 3, 64, 64)\nwith torch.no_grad():\n"
        "    a, b = model(x), student(x)\nassert (a - b).abs().max() <= 1e-5 * b.abs().max()\n"
        "assert transform.transforms and model.num_classes == 10\n"
    )
    assert run_apart(elsewhere, str(tmp_path), merged + delta + compare) == 0


def run_apart(function: Callable[..., None], *arguments: Any) -> int | None:
    """The exit status of a function in a process of its own."""
    process = warm_server().Process(target=function, args=arguments)
    process.start()
    process.join(280)
    process.kill()
    process.join()
    return process.exitcode
