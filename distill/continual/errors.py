"""ContinualError, the error of continual learning's parts."""

from __future__ import annotations

from augment.base import UserError


class ContinualError(UserError, ValueError):
    """A stream, a head, a memory or a regularizer cannot be used as asked; the text names the key or the class."""
