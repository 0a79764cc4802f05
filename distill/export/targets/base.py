"""The base class of export targets: writes a trained student in a format, and runs what was written.

A target is a class in a file of its own, with its settings nested in it; ``export.targets`` names its ``type``::

    class TorchScript(ExportTarget):
        class Settings(ExportTarget.Settings):
            type: Literal["torchscript"] = "torchscript"

        title, folder, tolerance = "TorchScript", "torchscript", 1e-4
        needs = {"my_runtime": "my-runtime"}

        def write(self, model, folder, about): ...
        def check(self, folder): ...
        def session(self, folder): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import augment.base
from augment.base import Component
from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing, Result

if TYPE_CHECKING:  # a program is opened without torch
    from torch import Tensor, nn

DISTRIBUTION = "delta-distill"
Session = Callable[["Tensor"], "Tensor"]
"""fp32 images [N, 3, H, W], normalized as the student's input → logits [N, K] fp32, on the CPU."""


@dataclass(frozen=True)
class CalibrationImages:
    """Training images as evaluation prepares them, for the ranges of quantized values.

    Args:
        images: [N, 3, H, W] fp32, normalized.
        ids: names of the samples.
    """

    images: Tensor
    ids: tuple[str, ...]


@dataclass(frozen=True)
class About:
    """Metadata stored with exported weights.

    Args:
        origin: where the backbone's weights came from, e.g. ``resnet50.a1_in1k``.
        labels: class names in the order of the logits; empty if there are none.
        preprocessing: how an image becomes the network's input; None: as the model declares.
        results: measured numbers.
        model_args: arguments of ``timm.create_model``; None: what timm recorded on the model.
        calibration: for a target that :attr:`ExportTarget.calibrates`; else None.
    """

    origin: str
    labels: Sequence[str] = ()
    preprocessing: Preprocessing | None = None
    results: Sequence[Result] = field(default_factory=tuple)
    model_args: dict[str, Any] | None = None
    calibration: CalibrationImages | None = None

    @property
    def of_weights(self) -> dict[str, Any]:
        """What files of weights hold: all but the images."""
        return {name: value for name, value in vars(self).items() if name != "calibration"}


class ExportTarget(Component):
    """A format that a student is exported in.

    Attributes, of the class or, where settings decide, of the instance:
        title: name of what is written in messages and tables, e.g. ``merged model``; unique among a run's targets.
        folder: name of its folder in the run's ``export/``; unique as well, and neither may be used by the run itself.
        tolerance: largest difference from the live model's logits, relative to the largest absolute logit, that
            verification accepts.
        agreement: smallest share of the images with the same top-1 class that verification accepts.
        threads: number of threads that its sessions use; None: as many as the runtime chooses.

    Class attributes:
        needs: name to import → package to install, of what this package does not install itself.
        extra: the extra of this package that installs them; empty: they are installed by their names.
        calibrates: whether it needs training images, ``About.calibration``.
    """

    class Settings(augment.base.Settings):
        type: str

    title: str
    folder: str
    tolerance: float = 1e-5
    agreement: float = 1.0
    threads: int | None = None
    needs: ClassVar[Mapping[str, str]] = {}
    extra: ClassVar[str] = ""
    calibrates: ClassVar[bool] = False

    def __init__(self, settings: Settings):
        self.settings = settings

    @classmethod
    def missing(cls) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for module, package in cls.needs.items() if find_spec(module) is None]

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

    def rehearse(self, model: nn.Module, folder: Path, about: About) -> None:
        """Try the export of an untrained model, before anything is trained; as :meth:`write`, or a cheaper test."""
        self.write(model, folder, about)

    def current(self, model: nn.Module, folder: Path, about: About) -> int | None:
        """Size of the weights if ``folder`` holds what :meth:`write` would write, which is then left out; else None."""
        return None

    def elsewhere(self) -> str | None:
        """Why what was written cannot run on this machine, so that only its checksums are verified; None if it can."""
        return None

    def check(self, folder: Path) -> str:
        """Check that every file is what was written; returns the SHA-256 of the weights.

        Raises:
            ExportError: a file is absent, damaged or replaced.
        """
        raise NotImplementedError

    def import_runtime(self) -> None:
        """Import the packages of a session, which is done before its memory and load time are measured."""

    def session(self, folder: Path) -> Session:
        """Load what was written, without the code of this package where that is possible, as users do."""
        raise NotImplementedError

    def other_sessions(self, folder: Path) -> Mapping[str, Session]:
        """A few words → another way to run what was written, which verification shows beside and does not judge."""
        return {}


def install_line(targets: Iterable[type[ExportTarget]]) -> str:
    """The command that installs what these formats need."""
    targets = list(targets)
    extras = sorted({target.extra for target in targets if target.extra})
    packages = sorted({package for target in targets if not target.extra for package in target.missing()})
    own = [f"'{DISTRIBUTION}[{','.join(extras)}]'"] if extras else []
    return " ".join(["uv pip install", *own, *packages])


def require(targets: Iterable[ExportTarget]) -> None:
    """Raise ``ExportError`` if a package that a target needs is not installed; the text has the line to install all."""
    absent = {type(target): missing for target in targets if (missing := target.missing())}
    if absent:
        names = "; ".join(f"{target.title} needs {', '.join(missing)}" for target, missing in absent.items())
        raise ExportError(f"a format is not installed: {names}. Install it: {install_line(absent)}")
