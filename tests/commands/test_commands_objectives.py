"""``distill objectives`` in narrow and wide terminals."""

import io

import pytest
from rich.console import Console

from augment.base import Registry
from distill.commands.objectives import list_objectives
from distill.objectives.base import Objective

KNOWN = Registry("distill.objectives", "Objective").known()


@pytest.mark.parametrize("width", [80, 120])
def test_every_objective_is_listed_with_its_defaults_and_paper(width: int) -> None:
    out = io.StringIO()
    list_objectives(Console(file=out, width=width))
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    for name, settings in KNOWN.items():
        assert f"\n{name} " in text
        cls = settings.component
        assert issubclass(cls, Objective)
        assert cls.paper or not cls.reads_teacher, f"{name} reads a teacher, so it comes from a paper"
    if width == 120:
        assert "Knowledge distillation: the student matches the teacher's softened class probabilities." in words
        assert "temperature: 4, standardize: false" in words and "Hinton et al. 2015, arXiv 1503.02531" in words
        assert "weight: 100, stages: middle" in words
