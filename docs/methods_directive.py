"""``.. methods:: objective kd dkd``: documents methods from their modules and classes, so that pages stay up to date.

For each type: the module's docstring (what it is, its equation), the class, the functions that hold its maths, and a
table of its own settings. ``.. methods:: objective`` without names documents every type that no page
names, so that a new method appears without an edit. ``.. method-settings:: objective`` is the table of the settings
that all methods of a kind share, ``.. method-list:: objective`` one line for each method.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from method_types import CONTRACTS, known, named_on_pages
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles


def functions_of(module: Any, cls: type, name: str) -> list[str]:
    """The functions that hold the maths: the one of the type's name, and those that the docstrings refer to."""
    docs = f"{module.__doc__ or ''} {cls.__doc__ or ''}"
    referred = {name, *re.findall(r":func:`~?([\w.]+)`", docs)}
    return [
        function
        for function, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and function in referred
    ]


def shown_type(annotation: Any) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"typing\.|\b[a-z_]+(?:\.[a-z_]+)*\.(?=[A-Z])", "", text).replace("NoneType", "None")
    text = re.sub(r"Annotated\[([^,\[\]]+),.*\]", r"\1", text)
    return re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace(", ", " | "), text)


def settings_table(settings: Any, without: Any | None = None) -> Iterator[str]:
    """A list table of the settings' fields; those that ``without`` has too, with the same default, are left out."""
    rows = []
    for name, field in settings.model_fields.items():
        inherited = without.model_fields.get(name) if without else None
        same = (
            inherited is not None and inherited.default == field.default and inherited.description == field.description
        )
        if name == "type" or same:
            continue
        if field.is_required():
            default = "required"
        else:
            value = field.get_default(call_default_factory=True)
            default = f"``{getattr(value, 'model_dump', lambda value=value: value)()!r}``"
        rows.append((name, shown_type(field.annotation), default, escape(field.description or "")))
    if not rows:
        return
    yield from (".. list-table::", "   :header-rows: 1", "   :class: settings", "   :widths: 15 22 16 47", "")
    for row in [("key", "type", "default", "meaning")] + [(f"``{n}``", f"``{t}``", d, m) for n, t, d, m in rows]:
        for position, cell in enumerate(row):
            yield f"   {'* -' if position == 0 else '  -'} {cell}"
    yield ""


def escape(text: str) -> str:
    return re.sub(r"([*|`\\])|_(?=\W|$)", lambda match: "\\" + match[0], text)


def section(kind: str, name: str, cls: type) -> Iterator[str]:
    """The reStructuredText of one method."""
    module = sys.modules[cls.__module__]
    yield from (f".. _{kind}-{name}:", "", f"``{name}``", "-" * (len(name) + 4), "")
    if kind == "operation":
        yield from (f".. autoclass:: {cls.__module__}.{cls.__name__}", "")
        return
    yield from (f".. automodule:: {module.__name__}", "   :no-members:", "   :no-index:", "")
    yield from settings_table(
        cls.Settings, getattr(sys.modules[f"{CONTRACTS[kind][0]}.base"], CONTRACTS[kind][1]).Settings
    )  # type: ignore[attr-defined]
    yield from (f".. autoclass:: {cls.__module__}.{cls.__name__}", "   :no-members:", "")
    for function in functions_of(module, cls, name):
        yield from (f".. autofunction:: {module.__name__}.{function}", "")


class Methods(SphinxDirective):
    required_arguments = 1
    optional_arguments = 100

    def run(self) -> list[nodes.Node]:
        kind, *names = self.arguments
        classes = known(kind)
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise self.error(f"no {kind} is called {', '.join(unknown)}; there are {', '.join(classes)}")
        lines: list[str] = []
        for name in names or [name for name in classes if name not in named_on_pages(Path(self.env.srcdir), kind)]:
            lines += section(kind, name, classes[name])
            self.env.note_dependency(inspect.getfile(classes[name]))
        return parsed(self, lines)


class MethodSettings(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        known(self.arguments[0])
        package, name = CONTRACTS[self.arguments[0]]
        return parsed(self, list(settings_table(getattr(sys.modules[f"{package}.base"], name).Settings)))


class MethodList(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        lines = [".. list-table::", "   :widths: 20 80", "   :class: settings", ""]
        for name, cls in known(kind).items():
            doc = sys.modules[cls.__module__].__doc__ if kind != "operation" else cls.__doc__
            title = f"``{name}``" if kind == "source" else f":ref:`{name} <{kind}-{name}>`"
            lines += [f"   * - {title}", f"     - {(doc or '').strip().splitlines()[0].removesuffix('::')}"]
        return parsed(self, [*lines, ""])


def parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    holder = nodes.section()
    holder.document = directive.state.document
    source = directive.get_source_info()[0]
    nested_parse_with_titles(directive.state, StringList(lines, source=source), holder)
    return holder.children


def plain_signs(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Outside of literals, ``|D|`` is an absolute value and ``[B, *shape]`` a shape: no reStructuredText is meant."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<!\\)\||(?<=, )\*(?=\w+\])", lambda sign: "\\" + sign[0], part) for part in parts[::2]]
        lines[number] = "``".join(parts)


def without_file_links(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    """Links of an included README to files that the site does not hold become their text."""
    link = re.compile(r"\[([^\]]+)\]\((?!https?:|#|docs/)[^)]+\)")
    content[:] = [link.sub(r"\1", text) for text in content]


def bare_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, args: str | None, back: str | None
) -> Any:
    """The arguments of a method's class are the same for all of its kind: its page need not repeat them."""
    if what == "class" and hasattr(obj, "Settings") and name.split(".")[-1] not in {"Objective", "Delta", "Source"}:
        return ("", None)
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("methods", Methods)
    app.add_directive("method-settings", MethodSettings)
    app.add_directive("method-list", MethodList)
    app.connect("autodoc-process-docstring", plain_signs)
    app.connect("include-read", without_file_links)
    app.connect("autodoc-process-signature", bare_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
