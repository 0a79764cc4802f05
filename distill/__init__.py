"""Delta Distill: a large frozen teacher into a small student, a frozen backbone plus learned deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.past_views import ids_of_step, replay

__all__ = ["ids_of_step", "replay"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: loader workers import this package, and must not pay for networks.
    if name in __all__:
        from distill import past_views as module

        return getattr(module, name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
