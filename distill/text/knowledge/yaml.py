"""Definitions in a YAML file: ``name: text``, or ``name: [text, text]``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from distill.text.knowledge.file_of_classes import FileOfClasses
from distill.yaml_tree import parse_yaml


class YamlKnowledge(FileOfClasses):
    """A YAML file: a mapping of names to a text or a list of texts."""

    class Settings(FileOfClasses.Settings):
        type: Literal["yaml"] = "yaml"

    settings: Settings

    def read(self, text: str) -> Iterable[tuple[str, str]]:
        tree = parse_yaml(text, str(self.settings.path))
        if not isinstance(tree, dict):
            raise ValueError("expected a mapping of names to texts")
        for name, texts in tree.items():
            for each in texts if isinstance(texts, list) else [texts]:
                if not isinstance(each, str):
                    raise ValueError(f"{name}: expected a text or a list of texts, found {each!r}")
                yield str(name), each
