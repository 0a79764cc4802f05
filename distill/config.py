"""The whole experiment as one typed tree; every error names its key path.

Importing this costs no torch: only looking at what a config names (objectives, deltas, operations) does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from augment.base.registry import Registry
from augment.base.settings import VALIDATION_PASSES, Settings, did_you_mean, error_at, is_deferred
from augment.policy import AugmentSettings
from distill.data.settings import DataSettings
from distill.models.settings import StudentSettings, TeacherSettings
from distill.training.settings import FitTeacherSettings, TrainingSettings
from distill.yaml_tree import ConfigError, dump_yaml, load_tree, merge_trees, parse_yaml

if TYPE_CHECKING:  # the base class of objectives imports torch
    from distill.objectives.base import Objective

    AnyObjective = Objective.Settings
else:
    AnyObjective = Annotated[Settings, Registry("distill.objectives", "Objective")]

__all__ = ["ConfigError", "Experiment", "dump_config", "load_config", "merge_trees", "parse_yaml", "validate_tree"]


class ControlSettings(Settings):
    """What the student is compared with."""

    linear_probe: bool = Field(True, description="logistic regression on the frozen backbone's features")
    labels_only: bool = Field(True, description="the same student and number of updates without a teacher")


class ExportSettings(Settings):
    verify_images: int = Field(256, ge=1, description="real images on which merged must equal unmerged")


class Experiment(Settings):
    """One run: data, views, teacher, student, objectives, training, controls, export."""

    name: str = Field(description="the run folder's name")
    output: Path = Field(Path("runs"), description="folder that holds the run folders and the fitted teachers")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataSettings
    augment: AugmentSettings = AugmentSettings()
    teacher: TeacherSettings | None = Field(None, description="none: the student learns from labels alone")
    fit_teacher: FitTeacherSettings | None = Field(None, description="first train the teacher; cached by content")
    student: StudentSettings
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    training: TrainingSettings = TrainingSettings()
    controls: ControlSettings = ControlSettings()
    export: ExportSettings = ExportSettings()

    @field_validator("name")
    @classmethod
    def _stays_in_output(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("a run name is letters, digits, '.', '_' and '-', and starts with a letter or digit")
        if name == "teachers":
            raise ValueError("'teachers' is where fitted teachers are kept; choose another name")
        return name

    @model_validator(mode="after")
    def _parts_belong_together(self, info: ValidationInfo) -> Experiment:
        if is_deferred(info, "classes"):
            return self
        reading = [o.type for o in self.objectives if o.component.reads_teacher]  # type: ignore[union-attr]
        if reading and self.teacher is None:
            raise error_at(
                "objectives", f"{', '.join(reading)} read a teacher, and there is none; add teacher.networks"
            )
        if self.teacher is not None and not reading:
            raise error_at("teacher", "no objective reads it; add one such as kd, or remove the teacher")
        self._check_cache()
        self._check_weights()
        self._check_placement()
        heads = [o.type for o in self.objectives if o.component.sets_head]  # type: ignore[union-attr]
        if self.teacher is not None and len(heads) * len(self.teacher.networks) > 1:
            text = f"{', '.join(heads)} writes the student's head, which one term with one teacher can do"
            raise error_at("objectives", text)
        one_class = [o.type for o in self.objectives if o.needs_one_class]
        if one_class and self.augment.mix is not None:
            raise error_at(
                "augment.mix", f"{', '.join(one_class)} needs one class per image, but mixing gives an image two"
            )
        if self.fit_teacher is not None and self.teacher is None:
            raise error_at("fit_teacher", "there is no teacher to fit; add teacher.networks")
        batch, devices = self.data.batch_size, self.training.devices
        if batch % devices:
            raise error_at("data.batch_size", f"{batch} cannot be shared out evenly over {devices} training.devices")
        return self

    def _check_placement(self) -> None:
        """Refuse views by the loader's workers where there are none."""
        of_teacher = None if self.fit_teacher is None else self.fit_teacher.augment
        views = {"augment": self.augment, "fit_teacher.augment": of_teacher}
        for key, settings in views.items():
            if self.data.on_device and settings is not None and settings.placement == "loader":
                text = "data.on_device leaves the loader without workers; say device or auto"
                raise error_at(f"{key}.placement", text)

    def _check_weights(self) -> None:
        """What weighs samples or networks has somebody to ask, and objectives that listen."""
        curriculum, teacher = self.training.curriculum, self.teacher
        if self.fit_teacher is not None and self.fit_teacher.training.curriculum is not None:
            text = "it asks a teacher which samples are easy, and the teacher's own fit has none"
            raise error_at("fit_teacher.training.curriculum", text)
        if curriculum is not None and teacher is None:
            raise error_at("training.curriculum", "it asks a teacher which samples are easy, and there is none")
        if teacher is None:
            return
        weighting = teacher.weighting.type
        unsupported = [o for o in self.objectives if not o.component.weighs_samples]  # type: ignore[union-attr]
        if curriculum is not None and unsupported:
            text = f"{', '.join(o.type for o in unsupported)}: no mean over samples whose parts could be weighed"
            raise error_at("training.curriculum", text)
        unsupported = [o for o in unsupported if o.component.reads_teacher]  # type: ignore[union-attr]
        if weighting in ("confidence", "agreement") and unsupported:
            text = f"{weighting} is by sample, and {', '.join(o.type for o in unsupported)} is no mean over samples"
            raise error_at("teacher.weighting", f"{text}; fixed and learned weights work with every objective")
        if weighting == "learned" and self.student.compile:
            text = "weighting: learned needs a gradient for each of the teacher's networks, which compiled code refuses"
            raise error_at("student.compile", text)
        for n, network in enumerate(teacher.networks):
            if network.labels == "same":
                continue
            if self.fit_teacher is not None:
                text = "fit_teacher trains the network on the data's own classes; leave labels out"
                raise error_at(f"teacher.networks.{n}.labels", text)
            heads = [o.type for o in self.objectives if o.component.sets_head]  # type: ignore[union-attr]
            if heads:
                text = f"{', '.join(heads)} gives the student the teacher's head as it is; leave labels out"
                raise error_at(f"teacher.networks.{n}.labels", text)

    def _check_cache(self) -> None:
        """Refuse a cache that lacks something that is read of the teacher."""
        if self.teacher is None or self.teacher.cache is None:
            return
        components: list[Any] = [objective.component for objective in self.objectives]
        readers = {o.type: c.needs for o, c in zip(self.objectives, components) if c.reads_teacher}
        if self.teacher.weighting.type in ("confidence", "agreement"):
            readers["teacher.weighting"] = frozenset({"logits"})
        if self.training.curriculum is not None:
            readers["training.curriculum"] = frozenset({"logits"})
        if any(network.labels != "same" for network in self.teacher.networks):
            readers["teacher.networks.labels"] = frozenset({"logits"})
        for reader, needs in readers.items():
            lacking = needs - self.teacher.cache.holds
            if "maps" in lacking:
                text = f"{reader} reads the teacher's maps, which no cache holds; remove the cache"
                raise error_at("teacher.cache", text)
            if "logits" in lacking:
                text = f"{reader} reads the teacher's logits; say full, or the number of largest ones to keep"
                raise error_at("teacher.cache.logits", text)
            if "pooled" in lacking:
                raise error_at("teacher.cache.pooled", f"{reader} reads the teacher's pooled features; say true")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate a config. Raises ``ConfigError``; no network or data is touched."""
    return validate_tree(load_tree(path, overrides), str(path))


def validate_tree(tree: dict[str, Any], source: str) -> Experiment:
    """The experiment that plain values describe. Raises ``ConfigError`` with a line for everything that is wrong."""
    try:
        return [Experiment.model_validate(tree, context=deferred) for deferred in VALIDATION_PASSES][-1]
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'all of it'}: {_sentence(e)}"
            for e in error.errors()
            if not _is_an_echo(e)
        ]
        raise ConfigError(f"{source} cannot be used:\n" + "\n".join(lines)) from None


def dump_config(experiment: Experiment) -> str:
    """The resolved config as YAML that ``load_config`` reads back to an equal experiment."""
    return dump_yaml(experiment.model_dump(mode="json"))


def editor_schema() -> dict[str, Any]:
    """JSON schema of a config file. Hardly a key is required in it: a file may lean on the one that ``base`` names."""
    schema = _without_required(Experiment.model_json_schema())
    schema["properties"]["base"] = {"type": "string", "description": "a config that this one is laid over, key by key"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_required(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_required(item) for item in part]
    if not isinstance(part, dict):
        return part
    # The type alone tells a user's own class from a misspelt one of ours.
    kept = {key: value for key, value in part.items() if key != "required" or value == ["type"]}
    return {key: _without_required(value) for key, value in kept.items()}


def _is_an_echo(error: Any) -> bool:
    """Whether a list is called too short only because its items are wrong."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _sentence(error: Any) -> str:
    """What pydantic says of one key, in the words of somebody who writes YAML."""
    kind, about = error["type"], error.get("ctx", {})
    found = _shown(error["input"])
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {found}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {about[key]:g}, is {found}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", about["expected"])
        hint = did_you_mean(str(error["input"]), choices)
        return f"expected {about['expected']}, found {found}" + (hint if "did you mean" in hint else "")
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        bound = about["min_length" if few else "max_length"]
        return f"needs at {'least' if few else 'most'} {bound} item{'s' * (bound != 1)}, has {about['actual_length']}"
    return error["msg"].removeprefix("Value error, ")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping (key: value)"),
    "string_type": "a text (numbers and truth values become text in quotes)",
    "path_type": "a path",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
