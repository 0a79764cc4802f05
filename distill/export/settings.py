"""Settings of the formats that a student is exported in. This module does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from augment.base import Registry, Settings, error_at

TARGETS = Registry("distill.export.targets", "ExportTarget")

if TYPE_CHECKING:  # the base class of targets imports torch
    from distill.export.targets.base import ExportTarget

    AnyTarget = ExportTarget.Settings
else:
    AnyTarget = Annotated[Settings, TARGETS]


class ExportSettings(Settings):
    """The formats written beside the delta file, and how they are verified."""

    targets: tuple[AnyTarget, ...] | None = Field(
        None, description="formats beside the delta file; default: timm_folder, a plain timm model with merged deltas"
    )
    verify_images: int = Field(
        256, ge=1, description="real images on which every export must give the logits of the student"
    )

    @model_validator(mode="after")
    def _one_folder_each(self) -> ExportSettings:
        by_folder: dict[str, str] = {}
        for index, target in enumerate(self.targets or ()):
            if not isinstance(target, Settings):  # still a mapping: its class is not imported yet
                continue
            folder: str = target.component.folder  # type: ignore[union-attr]
            if folder in by_folder:
                text = f"{by_folder[folder]} and {target.type} both write the folder {folder!r}"
                raise error_at(f"targets.{index}", text)
            by_folder[folder] = target.type
        return self

    def make_targets(self) -> list[ExportTarget]:
        """The targets. Raises ``PluginError`` for an unknown type."""
        settings = self.targets
        if settings is None:
            settings = (TARGETS.settings_of("timm_folder").model_validate({"type": "timm_folder"}),)  # type: ignore[assignment]
        return [target.component(target) for target in settings or ()]  # type: ignore[misc]
