"""Exports of a student, and :func:`open`, which runs one of any format. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.export.opening import Opened, open

__all__ = ["Opened", "open"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from distill.export import opening

        return getattr(opening, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
