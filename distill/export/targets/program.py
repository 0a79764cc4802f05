"""The base class of formats that hold a traced program: the files and one manifest over them, see ``artifact``.

Everything but writing works without torch, as far as the format's own runtime does. A format defines :meth:`convert`
and :meth:`load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from distill.export.artifact import (
    CARD,
    MANIFEST,
    ProgramInput,
    ProgramManifest,
    new_folder,
    read_artifact,
    versions,
    write_manifest,
)
from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing
from distill.export.opening import Opened, Run
from distill.export.program_card import program_card
from distill.export.targets.base import About, ExportTarget, Session, require
from distill.files import sha256_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Converted:
    """Facts about what a format has written, for its manifest.

    Args:
        opset: of ONNX.
        options: of the session.
        machine: facts about the processor.
    """

    opset: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, bool | str] = field(default_factory=dict)


class ProgramTarget(ExportTarget):
    """A format that holds the student's computation, so that no code of this package or of timm is needed to run it.

    The live model in evaluation is traced, so structural deltas are in the program too. Height and width are fixed.

    Attributes, of the class or, where settings decide, of the instance:
        weights: the file that holds the weights, whose size the report shows.
        batch: the fixed number of images; None: any.
    """

    class Settings(ExportTarget.Settings):
        input: Literal["float", "uint8"] = Field(
            "float",
            description="float: [N, C, H, W] fp32, normalized; uint8: [N, H, W, C] pixels of the exact size, "
            "normalized inside the program",
        )

    settings: Settings
    weights: ClassVar[str]
    batch: int | None = None

    def __init__(self, settings: Settings):
        super().__init__(settings)
        if settings.input == "uint8":
            self.title, self.folder = f"{self.title}, uint8 input", f"{self.folder}-uint8"

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        """Write a program in this format.

        Args:
            program: of the student, with the input that ``settings`` say.
            folder: an empty one.
            about: metadata, for formats that hold some; ``preprocessing`` is set.

        Returns:
            Facts for the manifest.
        """
        raise NotImplementedError

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        """Load a program.

        Args:
            files: name → checked bytes.
            manifest: of them.

        Returns:
            A function that runs a batch.
        """
        raise NotImplementedError

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        from distill.export.trace import classes_of, converting

        require([self])
        prepared, program = self._traced(model, about)
        classes = classes_of(program)
        if about.labels and len(about.labels) != classes:
            raise ExportError(f"{len(about.labels)} labels for {classes} classes")
        with new_folder(folder) as written:
            with converting(self.title, program):
                facts = self.convert(program, written, prepared)
            fields = self._fields(model, prepared)
            card = program_card(self.title, fields["architecture"], fields["input"], classes, prepared)
            (written / CARD).write_text(card)
            write_manifest(written, **fields, classes=classes, **vars(facts))
            return (written / self.weights).stat().st_size

    def rehearse(self, model: nn.Module, folder: Path, about: About) -> None:
        """Trace it: the conversions themselves take from seconds to minutes."""
        require([self])
        self._traced(model, about)

    def _traced(self, model: nn.Module, about: About) -> tuple[About, ExportedProgram]:
        from distill.export.trace import trace

        preprocessing = about.preprocessing or Preprocessing.of(model)
        prepared = About(**{**vars(about), "preprocessing": preprocessing})
        pixels = self.settings.input == "uint8"
        return prepared, trace(model, preprocessing, pixels=pixels, batch=self.batch)

    def _fields(self, model: nn.Module, about: About) -> dict[str, Any]:
        """What the manifest says before the conversion."""
        from distill.models.fingerprint import fingerprint

        assert about.preprocessing is not None
        channels, height, width = about.preprocessing.input_size
        pixels = self.settings.input == "uint8"
        return {
            "target": self.settings.model_dump(mode="json"),
            "model": fingerprint(model.state_dict()).sha256,
            "architecture": model.pretrained_cfg.get("architecture", ""),  # type: ignore[operator,union-attr]
            "origin": about.origin,
            "packages": versions(["torch", "timm", *self.needs.values()]),
            "input": ProgramInput(
                dtype="uint8" if pixels else "float32",
                layout="NHWC" if pixels else "NCHW",
                channels=channels,
                height=height,
                width=width,
                batch=self.batch,
            ),
            "labels": tuple(about.labels),
            "preprocessing": about.preprocessing,
            "results": tuple(about.results),
            "calibration": about.calibration.ids if about.calibration is not None else (),
        }

    def current(self, model: nn.Module, folder: Path, about: About) -> int | None:
        try:
            there = read_artifact(folder)[0]
        except ExportError:
            return None
        prepared = About(**{**vars(about), "preprocessing": about.preprocessing or Preprocessing.of(model)})
        fields = self._fields(model, prepared)
        return there.files[self.weights].bytes if all(getattr(there, n) == v for n, v in fields.items()) else None

    def check(self, folder: Path) -> str:
        read_artifact(folder)
        return sha256_of(folder / MANIFEST)

    def executable(self, manifest: ProgramManifest, files: Mapping[str, bytes]) -> Opened:
        """Load checked files, see :func:`distill.export.open`."""
        run = self.load(files, manifest)
        return Opened(run, manifest.input, manifest.classes, manifest.labels, manifest.preprocessing)

    def session(self, folder: Path) -> Session:
        require([self])
        exported = self.executable(*read_artifact(folder))
        return lambda images: exported(as_input(images, exported))


class FixedBatch(ProgramTarget):
    """A format whose programs run one number of images, which the settings choose."""

    class Settings(ProgramTarget.Settings):
        batch: int = Field(1, ge=1, description="number of images, which the program fixes")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.batch = settings.batch


def as_input(images: Tensor, exported: Opened) -> Tensor:
    """Normalized images [N, C, H, W] as the program's input: as they are, or their pixels [N, H, W, C] uint8."""
    if exported.input.dtype == "float32":
        return images
    return pixels_of(images, exported.preprocessing)


def pixels_of(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalized images [N, C, H, W] → pixels [N, H, W, C] uint8."""
    import torch

    mean, std = (torch.tensor(getattr(preprocessing, name)).view(1, -1, 1, 1) for name in ("mean", "std"))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
