"""``distill objectives`` and ``distill deltas``: tables of all methods, made without torch."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from augment.base import Registry
from distill.commands.methods import delta_types, objective_types
from distill.config import editor_schema
from distill.deltas.base import Delta
from distill.objectives.base import Objective

OBJECTIVES = Registry("distill.objectives", "Objective").known()
DELTAS = Registry("distill.deltas", "Delta").known()


def printed(table, width):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_every_objective_is_listed_with_its_defaults_and_paper(width: int) -> None:
    text = printed(objective_types(), width)
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    for name, settings in OBJECTIVES.items():
        assert f"\n{name} " in text
        cls = settings.component
        assert issubclass(cls, Objective)
        assert cls.paper or not cls.reads_teacher, f"{name} reads a teacher, so it comes from a paper"
    if width == 120:
        assert "Knowledge distillation: the student matches the teacher's softened class probabilities." in words
        assert "temperature: 4, standardize: false" in words and "Hinton et al. 2015, arXiv 1503.02531" in words
        assert "weight: 100, stages: middle" in words


@pytest.mark.parametrize("width", [80, 120])
def test_every_delta_is_listed_with_its_defaults_and_paper(width: int) -> None:
    text = printed(delta_types(), width)
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    for name, settings in DELTAS.items():
        assert f"\n{name} " in text and issubclass(settings.component, Delta)
    if width == 120:
        assert "Hu et al., LoRA, arXiv 2106.09685" in words and "rank: " in words


LISTED = """
import io, sys
from contextlib import redirect_stdout
from distill.cli import main

for command in (["objectives"], ["deltas"], ["schema"], ["--help"], ["deltas", "--help"]):
    out = io.StringIO()
    with redirect_stdout(out):
        try:
            main(command)
        except SystemExit as end:
            assert not end.code, command
    sys.stdout.write(out.getvalue() + "\\0")
heavy = {"torch", "timm", "kornia", "lightning", "torchvision", "albumentations", "safetensors"}
print(sorted(heavy & set(sys.modules)), [name for name in sys.modules if name.startswith("distill.objectives.")])
import distill.commands.exported  # what evaluate and verify import before they load a network

print(sorted(({*heavy, "matplotlib", "scipy"} - {"torch", "safetensors"}) & set(sys.modules)))
from augment.base import Registry

for kind, base in (("deltas", "Delta"), ("objectives", "Objective")):  # a config that names one imports all
    assert Registry(f"distill.{kind}", base).known()
print(sorted({"timm", "lightning", "torch._dynamo"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_lists_and_schema_need_no_torch_and_say_the_same() -> None:
    environment = {"PATH": "", "COLUMNS": "120", "PYTHONPATH": ":".join(sys.path), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, env=environment, timeout=120)
    assert not done.returncode, done.stderr
    objectives, deltas, schema, *_, imported = done.stdout.split("\0")
    assert imported.split("\n")[:3] == ["[] []", "[]", "[]"]
    assert objectives.split() == printed(objective_types(), 120).split()
    assert deltas.split() == printed(delta_types(), 120).split()
    assert json.loads(schema) == json.loads(json.dumps(editor_schema()))
