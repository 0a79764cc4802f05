"""UserError, the base of errors that are shown without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """An error whose text says what is wrong and what would work; the command line shows it without a traceback."""

    exit_code = 1
