"""CITATION.cff is what the Citation File Format 1.2.0 asks for, and says what the package's metadata say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TEXT, TEXTS = str, (list, str)
"""A string; a list of strings."""
KEYS: dict[str, Any] = {
    "abstract": TEXT,
    "authors": (list, dict),
    "cff-version": TEXT,
    "commit": TEXT,
    "contact": (list, dict),
    "date-released": TEXT,
    "doi": TEXT,
    "identifiers": (list, dict),
    "keywords": TEXTS,
    "license": TEXT,
    "license-url": TEXT,
    "message": TEXT,
    "preferred-citation": dict,
    "references": (list, dict),
    "repository": TEXT,
    "repository-artifact": TEXT,
    "repository-code": TEXT,
    "title": TEXT,
    "type": TEXT,
    "url": TEXT,
    "version": TEXT,
}
"""Every key that the schema knows, and its type; others are not allowed."""
ENTITY = {"name", "address", "alias", "city", "country", "email", "orcid", "website"}
PERSON = {"family-names", "given-names", "name-particle", "name-suffix", "affiliation", "alias", "email", "orcid"}


def problems(citation: dict[str, Any]) -> list[str]:
    """What the schema would say."""
    messages = [f"{key} is required" for key in ("authors", "cff-version", "message", "title") if key not in citation]
    for key, value in citation.items():
        if key not in KEYS:
            messages.append(f"{key} is not known")
            continue
        kind, item = KEYS[key] if isinstance(KEYS[key], tuple) else (KEYS[key], None)
        if not isinstance(value, kind) or not value:
            messages.append(f"{key} must be a {kind.__name__} that is not empty")
        elif item is not None and not all(isinstance(part, item) and part for part in value):
            messages.append(f"{key} must hold values of type {item.__name__}")
        elif item is str and len(set(value)) < len(value):
            messages.append(f"{key} holds a value twice")
    for author in citation.get("authors", ()):
        if not (set(author) <= ENTITY and "name" in author) and not set(author) <= PERSON:
            messages.append(f"an author is neither a person nor an entity: {author}")
    if citation.get("type", "software") not in ("dataset", "software"):
        messages.append("type must be dataset or software")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", citation.get("date-released", "2026-01-01")):
        messages.append("date-released must be YYYY-MM-DD")
    if citation.get("cff-version") != "1.2.0":
        messages.append("cff-version must be 1.2.0")
    return messages


def read() -> dict[str, Any]:
    return yaml.load((ROOT / "CITATION.cff").read_text(), yaml.BaseLoader)  # versions and dates stay text


def test_the_citation_is_valid():
    assert problems(read()) == []


def test_mistakes_in_a_citation_are_seen():
    wrong = {
        **read(),
        "licence": "MIT",
        "keywords": ["a", "a"],
        "authors": [{"family-name": "Doe"}],
        "type": "code",
        "date-released": "1 May 2026",
        "abstract": "",
    }
    del wrong["message"]
    assert problems(wrong) == [
        "message is required",
        "abstract must be a str that is not empty",
        "keywords holds a value twice",
        "licence is not known",
        "an author is neither a person nor an entity: {'family-name': 'Doe'}",
        "type must be dataset or software",
        "date-released must be YYYY-MM-DD",
    ]


def test_the_citation_says_what_the_package_does():
    citation, project = read(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert citation["title"].lower().replace(" ", "-") == project["name"]
