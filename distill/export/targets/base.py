"""The base class of export targets: writes a trained student in a format, and runs what was written.

A target is a class in a file of its own, with its settings nested in it; ``export.targets`` names its ``type``::

    class TorchScript(ExportTarget):
        class Settings(ExportTarget.Settings):
            type: Literal["torchscript"] = "torchscript"

        title, folder, tolerance = "TorchScript", "torchscript", 1e-4

        def write(self, model, folder, about): ...
        def check(self, folder): ...
        def session(self, folder): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

import augment.base
from augment.base import Component
from distill.export.manifest import Preprocessing, Result

Session = Callable[[Tensor], Tensor]
"""fp32 images [N, 3, H, W], normalized as the student's input → logits [N, K] fp32, on the CPU."""


@dataclass(frozen=True)
class About:
    """Metadata stored with exported weights.

    Args:
        origin: where the backbone's weights came from, e.g. ``resnet50.a1_in1k``.
        labels: class names in the order of the logits; empty if there are none.
        preprocessing: how an image becomes the network's input; None: as the model declares.
        results: measured numbers.
        model_args: arguments of ``timm.create_model``; None: what timm recorded on the model.
    """

    origin: str
    labels: Sequence[str] = ()
    preprocessing: Preprocessing | None = None
    results: Sequence[Result] = field(default_factory=tuple)
    model_args: dict[str, Any] | None = None


class ExportTarget(Component):
    """A format that a student is exported in.

    Class attributes:
        title: name of what is written in messages and tables, e.g. ``merged model``; unique among a run's targets.
        folder: name of its folder in the run's ``export/``; unique as well, and neither may be used by the run itself.
        tolerance: largest difference from the live model's logits, relative to the largest absolute logit, that
            verification accepts; top-1 must be the same on every image.
    """

    class Settings(augment.base.Settings):
        type: str

    title: ClassVar[str]
    folder: ClassVar[str]
    tolerance: ClassVar[float] = 1e-5

    def __init__(self, settings: Settings):
        self.settings = settings

    def unsupported(self, model: nn.Module) -> str | None:
        """The reason why this format cannot hold a model; None if it can."""
        return None

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        """Write a model.

        Args:
            model: a timm model, with or without deltas; it is not changed.
            folder: where to write; no other target writes there.
            about: metadata to store with the weights.

        Returns:
            Size of the stored weights in bytes.
        """
        raise NotImplementedError

    def check(self, folder: Path) -> str:
        """Check that every file is what was written; returns the SHA-256 of the weights.

        Raises:
            ExportError: a file is absent, damaged or replaced.
        """
        raise NotImplementedError

    def session(self, folder: Path) -> Session:
        """Load what was written, without the code of this package where that is possible, as users do."""
        raise NotImplementedError
