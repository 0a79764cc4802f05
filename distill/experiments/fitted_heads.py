"""The base class of the experiments that train no network: a head is fitted to pooled features and exported.

Importing this does not import torch.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from augment.base import error_at
from distill.experiments.base import check_unused
from distill.experiments.student import AnyObjective, ExportingExperiment

UNUSED = ("objectives", "teacher", "fit_teacher", "augment")
USED_OF_TRAINING = ("accelerator", "devices")


class FittedHeadExperiment(ExportingExperiment):
    """The config of a head on a frozen network.

    ``data.val_fraction`` is 0 unless it is given, since nothing is chosen. Keys that only a training reads are errors.
    """

    objectives: tuple[AnyObjective, ...] = Field((), description="none: no network is trained")

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_held_out(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(data := tree.get("data"), dict):
            tree = {**tree, "data": {"val_fraction": 0.0, **data}}
        return tree

    @model_validator(mode="after")
    def _trains_no_network(self) -> Self:
        why = "no network is trained, so nothing reads it"
        check_unused(self, UNUSED, why)
        keys = [key for key in type(self.training).model_fields if key not in USED_OF_TRAINING]
        check_unused(self.training, keys, why, "training.")
        if self.student.train == "full":
            raise error_at("student.train", "full: the network is frozen, and a head is fitted to its features")
        return self
