"""The base class of experiments: name, seed, data, training, plan. Importing this does not import torch."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

import distill.experiments
from augment.base import PluginError, Settings, did_you_mean, error_at, import_class, is_import_path
from distill.data.settings import DataSettings
from distill.training.settings import TrainingSettings

if TYPE_CHECKING:  # a stage imports torch
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage

DEFAULT = "distillation"


class Experiment(Settings):
    """The config of a run. A kind of run is a subclass that fixes ``kind`` to its name and defines :meth:`plan`.

    Class attributes:
        has_target: whether it trains on an unlabeled target domain too, ``data.target``.
    """

    has_target: ClassVar[bool] = False
    kind: str = Field(DEFAULT, description="kind of run, which defines its stages")
    name: str = Field(description="name of the run folder")
    output: Path = Field(Path("runs"), description="folder that holds the run folders and the fitted teachers")
    seed: int = Field(0, ge=0, lt=2**31, description="of all random numbers")
    data: DataSettings
    training: TrainingSettings = TrainingSettings()

    @field_validator("name")
    @classmethod
    def _stays_in_output(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("a run name is letters, digits, '.', '_' and '-', and starts with a letter or digit")
        if name == "teachers":
            raise ValueError("the folder 'teachers' is for fitted teachers; choose another name")
        return name

    @model_validator(mode="after")
    def _target_is_used(self) -> Self:
        if self.data.target is not None and not self.has_target:
            raise error_at("data.target", f"kind: {self.kind} has no target domain; use kind: target_domain")
        return self

    def describe(self, data: ExperimentData) -> list[str]:
        """Lines about how a run of this kind uses its data, for its opening; none by default."""
        return []

    def plan(self) -> list[Stage]:
        """The stages of the run; each comes after those that it refers to."""
        raise NotImplementedError


def check_unused(settings: Settings, keys: Iterable[str], why: str, prefix: str = "") -> None:
    """Raise an error for a key that a kind of run does not read, and that has another value than its default.

    Args:
        settings: that have the keys.
        keys: of them.
        why: the reason, for the error.
        prefix: of the keys in the config, such as "training.".
    """
    for key in keys:
        field = type(settings).model_fields[key]
        if getattr(settings, key) != field.get_default(call_default_factory=True):
            raise error_at(f"{prefix}{key}", f"{why}; leave it out")


def experiment_kinds() -> dict[str, type[Experiment]]:
    """Kind → class, for each kind in this package."""
    kinds = {}
    for module in pkgutil.iter_modules(distill.experiments.__path__, f"{distill.experiments.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            own = isinstance(value, type) and issubclass(value, Experiment) and value.__module__ == module.name
            if own and "kind" in value.__annotations__ and value is not Experiment:
                kinds[value.model_fields["kind"].default] = value
    return kinds


def experiment_class(kind: Any) -> type[Experiment]:
    """The class of a kind, or the user's class ``package.module:Class``. Raises ``PluginError``."""
    if isinstance(kind, str) and is_import_path(kind):
        return import_class(kind, Experiment)
    kinds = experiment_kinds()
    if kind not in kinds:
        raise PluginError(
            f"unknown kind {kind!r}{did_you_mean(str(kind), kinds)} (or your own as package.module:Class)"
        )
    return kinds[kind]
