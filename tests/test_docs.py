"""What the documentation shows works: its Python and its commands run, its YAML is valid, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from augment.dual import AugmentSettings, DualAugment
from augment.views import InputSpec
from distill.config import merge_trees, validate_tree

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
NETWORK = {"model": "resnet50.a1_in1k"}
AROUND = {
    "name": "shown",
    "data": {"source": {"type": "digits"}},
    "teacher": {"networks": [NETWORK]},
    "student": {"network": NETWORK},
    "objectives": ["kd"],
}
"""What a fragment of a config is laid over."""
WITHOUT_OBJECTIVES = {
    "detection": ("name", "data"),
    "few_shot": ("name", "data", "student"),
    "zero_shot": ("name", "data", "student"),
}
"""Kind → the keys of these that it has."""
SMALLER = {"deltas": ["student.network={model: test_efficientnet, pretrained: false}"]}
"""Command → what is added to it, where its work on the network that is shown costs seconds."""


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of the page's code blocks in these languages, in their order."""
    every = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in every if language in languages]


def pages_with(*languages: str) -> list[str]:
    return [str(page.relative_to(DOCS)) for page in PAGES if blocks(page, *languages)]


def commands(text: str) -> list[list[str]]:
    """The command lines of a block, comments left out."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def app_of(program: str) -> typer.Typer:
    if program == "distill":
        from distill.cli import app

        return app
    from augment.__main__ import app as operations

    return operations


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the repository's ``configs``; modules that a page writes there are forgotten afterwards."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python", "bash"))
def test_python_and_commands_run(page: str, workplace: Path) -> None:
    """All blocks of a page in one folder and one namespace, in their order.

    A block that begins with ``# NAME.py`` is that file, which the other blocks and configs may name.
    """
    names: dict[str, object] = {"__name__": "page"}
    for language, text in blocks(DOCS / page, "python", "bash"):
        if language == "bash":
            for words in commands(text):
                more = SMALLER.get(words[1], []) if len(words) > 2 else []
                result = CliRunner().invoke(app_of(words[0]), [*words[1:], *more])
                assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception!r}"
        elif file := re.match(r"# (\w+)\.py\b", text):
            (workplace / f"{file[1]}.py").write_text(text)
            spec = importlib.util.find_spec(file[1])
            assert spec is not None and spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        else:
            exec(compile(text, f"docs/{page}", "exec"), names)


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_settings_shown_are_valid(page: str, workplace: Path) -> None:
    for _, text in blocks(DOCS / page, "python"):
        if file := re.match(r"# (\w+)\.py\b", text):
            (workplace / f"{file[1]}.py").write_text(text)
    for _, text in blocks(DOCS / page, "yaml"):
        own = yaml.safe_load(text)
        around = {key: AROUND[key] for key in WITHOUT_OBJECTIVES.get(own.get("kind"), AROUND)}
        validate_tree(merge_trees(around, own), f"docs/{page}")


def test_own_augmentation(workplace: Path) -> None:
    """The class and the config of 'Your augmentation' make views that repeat."""
    page = DOCS / "concepts" / "views.md"
    source = next(text for _, text in blocks(page, "python") if "class Tint" in text)
    (workplace / "my_ops.py").write_text(source)
    settings = next(text for _, text in blocks(page, "yaml") if "Tint" in text)
    augment = AugmentSettings.model_validate(yaml.safe_load(settings)["augment"])
    dual = DualAugment(augment, [InputSpec((16, 16))], InputSpec((16, 16)), seed=0)
    images, ids = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8), torch.arange(4)
    views, again = dual(images, ids, 0), dual(images.flip(0), ids.flip(0), 0)
    assert torch.equal(views.student[0], again.student[0].flip(0))
    assert not torch.equal(views.student[0], views.teacher[0][0])


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_shown_exist(page: str) -> None:
    """Commands that take long, or data that is not here, are parsed: names, options and the number of arguments."""
    for _, text in blocks(DOCS / page, "console"):
        for words in commands(text):
            if words[0] not in ("distill", "augment"):
                continue
            command: click.Command = typer.main.get_command(app_of(words[0]))
            context = click.Context(command, info_name=words[0])
            rest = words[1:]
            while isinstance(command, click.Group):
                child = command.get_command(context, rest[0])
                assert child is not None, f"{' '.join(words)}: no command {rest[0]}"
                command, rest = child, rest[1:]
            command.make_context(words[0], list(rest), parent=context)


def test_pages_of_methods_name_types_that_exist() -> None:
    """Every objective, delta and operation has a place in the documentation: named, or on the page for the rest."""
    sys.path.insert(0, str(DOCS))
    try:
        import method_types
    finally:
        sys.path.remove(str(DOCS))
    for kind in ("objective", "delta"):
        named = method_types.named_on_pages(DOCS, kind)
        assert named and named <= set(method_types.known(kind)), kind
        rest = [
            page
            for page in DOCS.rglob("*.rst")
            if re.search(rf"^\.\. methods:: {kind}$", page.read_text(), re.MULTILINE)
        ]
        assert len(rest) == 1, kind


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{os.path.relpath(page, ROOT)}: {target}"
        for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", page.read_text()):
            assert any((page.parent / target).with_suffix(end).exists() for end in (".md", ".rst")), f"{page}: {target}"
