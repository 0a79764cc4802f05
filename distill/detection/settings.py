"""Settings of the backbone of a detector. Importing this does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from augment.base import error_at
from distill.models.settings import LearningSettings, NetworkSettings


class DetectorBackboneSettings(LearningSettings):
    """The network whose maps a detector reads, and what of it is trained.

    Without deltas and with ``train: deltas`` (the defaults) it is frozen. Its classifier is left out.
    """

    network: NetworkSettings | None = Field(
        None, description="a pretrained network; with start, the backbone of its delta file, if the file does not tell"
    )
    start: Path | None = Field(
        None,
        description="a distilled student: the folder of a run that exported one, of a delta file, or of a timm folder;"
        " deltas of the file are merged first",
    )

    @property
    def way(self) -> str:
        """How it is trained: ``frozen``, ``deltas`` or ``whole``."""
        return "whole" if self.train == "full" else "deltas" if self.deltas else "frozen"

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        if self.network is None and self.start is None:
            raise error_at("network", "a detector needs a backbone; set network, or start to the folder of a student")
        return self
