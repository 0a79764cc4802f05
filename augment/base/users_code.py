"""Describes errors that users' own classes raise, with the line in the user's file."""

from __future__ import annotations

import os
import site
import sysconfig
import traceback
from pathlib import Path

LONGEST = 800
"""Characters of an error's text that are shown."""


def described(error: Exception) -> str:
    """Type and text of an error, and the line of the user's own code that it comes from, if there is one."""
    text = str(error).strip()
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} …"
    place = place_in_users_code(error)
    where = f" ({place})" if place else "; with DISTILL_TRACEBACK=1 the traceback shows where"
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def place_in_users_code(error: Exception) -> str:
    """``file, line 12, in function`` of the innermost frame outside this project and what is installed; else empty.

    Only the frames below the one that catches the error are searched, so a user's program that calls this project is
    not found.
    """
    project = Path(__file__).parents[2]
    others = [str(project / package) for package in ("augment", "distill")]
    others += [sysconfig.get_paths()["stdlib"], *site.getsitepackages(), site.getusersitepackages()]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        own = os.path.isfile(frame.filename) and not any(frame.filename.startswith(other + os.sep) for other in others)
        if own:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""
