"""The base of every settings model: closed, immutable, and helpful about a misspelt key."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


def nearest(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``choices``, else ``"; known: a, b, c"``."""
    choices = sorted(choices)
    folded = {choice.lower(): choice for choice in choices}
    close = get_close_matches(str(name).lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    return "; known: " + ", ".join(choices) if choices else ""


class Settings(BaseModel):
    """Typed settings of one part of an experiment.

    Unknown keys are errors that name the nearest valid key, values are not coerced across kinds (``"3"`` is no
    integer), and an instance cannot be changed after validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, validate_default=True)

    component: ClassVar[type | None] = None
    """The class that these settings configure; set by the class itself, see :mod:`distill.registry`."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [
            InitErrorDetails(
                type=PydanticCustomError("unknown_key", "unknown key{hint}", {"hint": nearest(key, known)}),
                loc=(str(key),),
                input=data[key],
            )
            for key in data
            if key not in known
        ]
        if unknown:
            raise ValidationError.from_exception_data(cls.__name__, unknown)
        return data
