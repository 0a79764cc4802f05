"""Fonts that have the glyphs of class names in any script, among those of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from matplotlib import font_manager

FIRST = "DejaVu Sans"  # comes with matplotlib


@dataclass(frozen=True)
class Fonts:
    """Font families for some texts, and the texts that no font of this machine can show."""

    families: tuple[str, ...]
    """In the order in which matplotlib looks for a glyph."""
    unreadable: frozenset[str]

    def labels(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names, with ``class 17`` (its index) in the place of one that cannot be shown."""
        return tuple(f"class {k}" if name in self.unreadable else name for k, name in enumerate(names))


def fonts_for(texts: Iterable[str]) -> Fonts:
    """The families that show the texts: matplotlib's own, and others of this machine for what it lacks."""
    texts = set(texts)
    wanted = {ord(sign) for text in texts for sign in text if sign.isprintable() and not sign.isspace()}
    families = [FIRST]
    lacking = wanted - _glyphs(font_manager.findfont(FIRST))
    if lacking:
        for name, path in _installed():
            if covered := lacking & _glyphs(path):
                families.append(name)
                lacking -= covered
            if not lacking:
                break
    return Fonts(tuple(families), frozenset(text for text in texts if any(ord(sign) in lacking for sign in text)))


def _installed() -> list[tuple[str, str]]:
    """Name and file of a regular font of each family, sans-serif ones first."""
    regular = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
    }
    regular.pop(FIRST, None)
    return sorted(regular.items(), key=lambda font: ("Sans" not in font[0], "Last Resort" in font[0], font[0]))


@lru_cache(maxsize=1024)
def _glyphs(path: str) -> frozenset[int]:
    """Code points that a font file has glyphs for; none if it cannot be read, or only has boxes."""
    if "LastResort" in path.replace(" ", ""):
        return frozenset()
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
