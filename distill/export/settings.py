"""Settings of the formats that a student is exported in. This module does not import torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from augment.base import Registry, Settings, error_at
from distill.export.pick import RuleError, parse_rule

TARGETS = Registry("distill.export.targets", "ExportTarget")
DELTA = "delta"
"""Name of the delta file's folder, and what tables of sizes call it."""
BACKBONE, REUSED_HEAD = "backbone", "reused head, beyond its own"
"""What tables of sizes call these."""
DELTA_FILE, LIVE_MODEL = "delta file", "live model"
"""What the results of ``verify`` call these."""
_USED = {"folder": {DELTA}, "title": {DELTA, BACKBONE, REUSED_HEAD, DELTA_FILE, LIVE_MODEL}}
"""Names that a run gives to something else."""

if TYPE_CHECKING:  # the base class of targets imports torch
    from distill.export.targets.base import ExportTarget

    AnyTarget = ExportTarget.Settings
else:
    AnyTarget = Annotated[Settings, TARGETS]


def _or_boolean(schema: dict[str, Any]) -> None:
    """Editors accept true and false as well."""
    schema["anyOf"] = [*schema["anyOf"], {"type": "boolean"}]


class MeasureSettings(Settings):
    """How the exported formats are measured; each one in a process of its own, beside the live model in PyTorch."""

    images: int | None = Field(None, ge=1, description="images of the test split that are compared; default: all")
    rounds: int = Field(30, ge=1, description="timed calls of each format and batch, in turn with the live model")
    threads: int = Field(1, ge=1, description="threads that every runtime is told to use")
    batches: tuple[int, ...] = Field((1, 16), min_length=1, description="numbers of images in a timed call")
    pick: str | None = Field(
        None, description='rule that chooses a format, such as "accuracy-1%, min latency"; see distill export --pick'
    )

    @field_validator("batches")
    @classmethod
    def _batches_differ(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if min(batches) < 1 or len(set(batches)) < len(batches):
            raise ValueError(f"{list(batches)}: give different numbers from 1 on")
        return tuple(sorted(batches))

    @model_validator(mode="after")
    def _rule_is_known(self) -> MeasureSettings:
        try:
            named = parse_rule(self.pick).batches if self.pick is not None else set()
        except RuleError as error:
            raise error_at("pick", str(error)) from error
        if unknown := named - set(self.batches):
            there = ", ".join(map(str, self.batches))
            raise error_at("pick", f"{self.pick!r}: batch {min(unknown)} is not measured, only {there}; see batches")
        return self


class ExportSettings(Settings):
    """The formats written in addition to the delta file, and how they are verified."""

    targets: tuple[AnyTarget, ...] | None = Field(
        None,
        description="formats in addition to the delta file; default: timm_folder, a timm model with merged deltas",
    )
    calibration_images: int = Field(
        128, ge=1, description="training images, as evaluation prepares them, on which quantized formats are calibrated"
    )
    verify_images: int = Field(
        256, ge=1, description="real images on which every export must give the logits of the student"
    )
    measure: MeasureSettings | None = Field(
        None,
        description="measure accuracy, size, time and memory of every format for the report; true: with the defaults",
        json_schema_extra=_or_boolean,
    )

    @model_validator(mode="before")
    @classmethod
    def _measure_is_a_switch(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(measure := tree.get("measure"), bool):
            return {**tree, "measure": {} if measure else None}
        return tree

    @model_validator(mode="after")
    def _names_are_unique(self) -> ExportSettings:
        """Files are written by a target's folder, sizes and checks are kept by its title."""
        known: dict[tuple[str, str], str] = {}
        for index, target in enumerate(self.targets or ()):
            if not isinstance(target, Settings):  # still a mapping: its class is not imported yet
                continue
            made = target.component(target)  # type: ignore[misc]
            for field in ("folder", "title"):
                name = getattr(made, field, None)
                key = (field, str(name).casefold())  # some file systems take "ONNX" and "onnx" for one folder
                if reason := _unusable(field, name):
                    raise error_at(f"targets.{index}", f"{target.type}: {reason}")
                if key in known:
                    raise error_at(f"targets.{index}", f"{known[key]} and {target.type} both have the {field} {name!r}")
                known[key] = target.type
        return self

    def make_targets(self) -> list[ExportTarget]:
        """The targets. Raises ``PluginError`` for an unknown type."""
        settings = self.targets
        if settings is None:
            settings = (TARGETS.settings_of("timm_folder").model_validate({"type": "timm_folder"}),)  # type: ignore[assignment]
        return [target.component(target) for target in settings or ()]  # type: ignore[misc]


def _unusable(field: str, name: object) -> str | None:
    """Why a target cannot have this folder or title."""
    if not isinstance(name, str) or not name:
        return f"its class has no {field!r}"
    if field == "folder" and not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return f"its folder {name!r} is not made of letters, digits, '-' and '_'"
    if name.casefold() in _USED[field]:
        return f"its {field} {name!r} is used for something else in every run"
    return None
