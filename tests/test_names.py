"""Identifiers are the field's own terms: words that were retired do not come back, and one name is one class."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("augment", "distill", "benchmarks", "examples", "tests")

WORDS = """
Workshop workshop shop Lesson lesson try_lesson taught Scene scene Look Looks look looks LOOKS on_trust Evidence
evidence Observed FreeTraining FreePoint Learned go_on goes_on native complaint complaints nearest Family
ExplainedError said ours theirs found one two needed wish deaf litter of_no_matter check_company alike sealed opened
stream_of placed CurveOnTest Saving StepClock DataModule Epochs OnePass Request Fetched Identity identify Tasks
shares figures preparing previewing exporting replaying placing Start Place turn
"""
RETIRED = frozenset(WORDS.split())
"""Without leading underscores, in just this spelling."""

BRITISH = re.compile(
    r"(optimi|standardi|quanti|normali|initiali|seriali|synchroni|regulari|generali|speciali|summari|visuali|organi"
    r"|recogni|minimi|maximi|tokeni|vectori|utili|parametri|locali|penali|emphasi|categori|randomi)"
    r"s(e|es|ed|er|ers|ing|ation|ations)"
    r"|(label|model|travel)l(ed|ing)|(colou|behaviou|neighbou|favou|honou)r\w*|grey\w*|centre[sd]?|artefacts?|licences?"
    r"|analyse[dr]?|catalogues?",
    re.IGNORECASE,
)
"""One part of an identifier: ``normalised`` of ``_normalised_weights``."""

KEPT = {
    # Figures that are drawn, not numbers.
    ("figures", "distill/report"),
    ("figures", "tests/report"),
    # Other libraries' own names.
    ("Identity", "nn.Identity"),
}

Identifier = tuple[str, int, ast.expr | None]
"""Name, line, and what it is an attribute of (None where it is none)."""


def files() -> list[Path]:
    return [ROOT / "train.py", *(path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py")))]


def identifiers(tree: ast.AST) -> Iterator[Identifier]:
    """Every name that the code binds, reads or passes; strings and comments are prose."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield node.id, line, None
        elif isinstance(node, ast.Attribute):
            yield node.attr, line, node.value
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, line, None
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg, line, None
        elif isinstance(node, ast.alias):
            for part in [*node.name.split("."), *([node.asname] if node.asname else [])]:
                yield part, line, None
        elif isinstance(node, ast.ImportFrom) and node.module:
            for part in node.module.split("."):
                yield part, line, None
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name, line, None
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            for name in node.names:
                yield name, line, None


def parts(name: str) -> list[str]:
    """``_normalisedView`` → ``["normalised", "View"]``."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)


@cache
def is_retired(name: str) -> bool:
    return name.lstrip("_") in RETIRED or any(BRITISH.fullmatch(part) for part in parts(name))


def is_kept(name: str, path: str, owner: ast.expr | None) -> bool:
    """Whether a retired word is what another library, or a drawing, is called."""
    qualified = name if owner is None else f"{ast.unparse(owner)}.{name}"
    return any(name == word and (path.startswith(where) or qualified.endswith(where)) for word, where in KEPT)


def retired_names(path: Path) -> list[str]:
    """``file:line name`` of each retired word among a file's identifiers and in its own name."""
    place = path.relative_to(ROOT).as_posix()
    lines = {
        f"{place}:{line} {name}"
        for name, line, owner in identifiers(ast.parse(path.read_text(), place))
        if is_retired(name) and not is_kept(name, place, owner)
    }
    if is_retired(path.stem) and not is_kept(path.stem, place, None):
        lines.add(f"{place}:0 {path.stem}")
    return sorted(lines, key=lambda line: (line.partition(":")[0], int(re.split("[: ]", line)[1])))


def public_classes() -> dict[str, list[str]]:
    """Name → the files of augment and distill that define a public class of that name at their top level."""
    classes = defaultdict(list)
    for tree in ("augment", "distill"):
        for path in sorted((ROOT / tree).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    classes[node.name].append(path.relative_to(ROOT).as_posix())
    return classes


@pytest.mark.slow
def test_no_identifier_is_a_retired_word():
    lines = [line for path in files() for line in retired_names(path)]
    assert not lines, f"{len(lines)} retired names:\n" + "\n".join(lines)


def test_every_public_class_has_a_name_of_its_own():
    twice = {name: places for name, places in public_classes().items() if len(places) > 1}
    assert not twice, "public classes of one name:\n" + "\n".join(f"{n}: {', '.join(p)}" for n, p in twice.items())


def test_the_search_sees_what_it_should():
    code = """
import a.workshop as shop
def f(one, *, look=1):
    g(said=x.theirs)
    nn.Identity()
    colour_map = greyed
"""
    names = identifiers(ast.parse(code))
    retired = [name for name, _, owner in names if is_retired(name) and not is_kept(name, "f.py", owner)]
    assert sorted(retired) == ["colour_map", "greyed", "look", "one", "said", "shop", "theirs", "workshop"]
    assert is_kept("figures", "distill/report/html.py", None) and not is_kept(
        "figures", "distill/training/fit.py", None
    )
    plain = ["ones", "stage_names", "normalized", "did_you_mean", "analyses", "identity", "labeled", "gray", "center"]
    assert not [name for name in plain if is_retired(name)]


if __name__ == "__main__":  # a list of what is left, file by file
    for path in files():
        if lines := retired_names(path):
            print(f"{len(lines):4d} {path.relative_to(ROOT)}: {' '.join(sorted({line.split()[-1] for line in lines}))}")
    print({name: places for name, places in public_classes().items() if len(places) > 1})
