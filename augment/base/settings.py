"""The base of every settings model: unknown keys are errors that name the nearest key, and models are immutable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from augment.base.suggestions import did_you_mean

VALIDATION_PASSES: tuple[frozenset[str], ...] = (
    frozenset({"classes", "operations"}),
    frozenset({"operations"}),
    frozenset(),
)
"""What each pass of a config's validation leaves unresolved. The first pass imports nothing that the config names, the
second resolves the classes (which need torch), the third the operations (which need kornia). So a mistake in any other
key is reported before torch and kornia are imported."""


def is_deferred(info: ValidationInfo, what: str) -> bool:
    """Whether this validation pass leaves ``"classes"`` or ``"operations"`` unresolved."""
    return what in (info.context or ())


KeyPath = tuple[int | str, ...]


def error_at(path: str, text: str) -> ValidationError:
    """An error at a key path inside a model, for a validator of the whole model to raise."""
    return _errors([_line(tuple(int(part) if part.isdigit() else part for part in path.split(".")), text)])


def _line(path: KeyPath, text: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("error_at", "{text}", {"text": text}), loc=path, input=None)


def _errors(lines: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("Settings", lines)


class Settings(BaseModel):
    """Typed settings of one part of an experiment.

    Unknown keys are errors that name the nearest valid key, values are not coerced across kinds (``"3"`` and ``true``
    are no integers), paths become absolute (see :func:`absolute`), and an instance cannot be changed after validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, validate_default=True)

    component: ClassVar[type | None] = None
    """The class that these settings configure; set by the class itself, see :mod:`augment.base.registry`."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest_key(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            raise _errors([_hinted(detail, known) for detail in error.errors()]) from None

    @field_validator("*", mode="wrap")
    @classmethod
    def _keep_the_kind(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        result = _with_absolute_paths(handler(value))
        changes = list(_changes_of_kind(value, result))
        if changes:
            raise _errors([_line(path, text) for path, text in changes])
        return result


def absolute(path: Path | str) -> Path:
    """The path with ``~`` and ``~user`` expanded, relative to the current folder. Links and ``..`` stay as they are.

    A config that is stored as absolute paths names the same files from every folder. A name of a model hub
    (``hf-hub:OWNER/NAME``) is no path, and stays as it is.
    """
    if str(path).startswith("hf-hub:"):
        return Path(path)
    return expanded(path).absolute()


def expanded(path: Path | str) -> Path:
    """The path with ``~`` and ``~user`` expanded; unchanged if the home folder of that user is not known."""
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        return given


def _with_absolute_paths(value: Any) -> Any:
    if isinstance(value, Path):
        return absolute(value)
    if isinstance(value, tuple | list) and any(isinstance(item, Path) for item in value):
        return type(value)(map(_with_absolute_paths, value))
    if isinstance(value, dict) and any(isinstance(item, Path) for item in value.values()):
        return {key: _with_absolute_paths(item) for key, item in value.items()}
    return value


def _hinted(detail: ErrorDetails, known: list[str]) -> InitErrorDetails:
    """The same error; for an unknown key of this model, with the nearest valid key."""
    path = detail["loc"]
    if detail["type"] == "extra_forbidden" and len(path) == 1:
        return _line(path, f"unknown key{did_you_mean(str(path[0]), known)}")
    if "url" not in detail:  # only pydantic's own types of error have one
        return InitErrorDetails(
            type=PydanticCustomError(detail["type"], "{text}", {"text": detail["msg"]}), loc=path, input=detail["input"]
        )
    return InitErrorDetails(type=detail["type"], loc=path, input=detail["input"], ctx=detail.get("ctx", {}))


def _changes_of_kind(given: Any, made: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """The values whose kind validation changed: a string to a number or a bool, or one of these two to the other.

    Yields key path and error text of each. pydantic's strict mode would also refuse tuples and paths, which YAML lacks.
    """
    if isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for index, (given_value, other) in enumerate(zip(given, made)):
            yield from _changes_of_kind(given_value, other, (*path, index))
    elif isinstance(given, dict) and isinstance(made, dict):
        for (key, given_value), other in zip(given.items(), made.values()):
            yield from _changes_of_kind(given_value, other, (*path, str(key)))
    elif isinstance(made, bool) and not isinstance(given, bool):
        yield path, f"expected true or false, found {given!r}"
    elif isinstance(made, int | float) and not isinstance(made, bool) and isinstance(given, str | bool):
        yield path, f"expected a number, found {str(given).lower() if isinstance(given, bool) else repr(given)}"
