"""``torch.export``: a program that torch loads and runs without timm."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, ProgramTarget

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pt2"
"""The name is inside the file, so equal exports need equal names."""


class Pt2(ProgramTarget):
    """A program of ``torch.export``; labels and preprocessing are files inside.

    Loading may unpickle, so check it first, as :func:`distill.export.open` does.
    """

    class Settings(ProgramTarget.Settings):
        type: Literal["pt2"] = "pt2"

    title, folder, weights = "torch.export", "pt2", FILE
    settings: Settings

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        import torch

        assert about.preprocessing is not None
        extra = {
            "labels.json": json.dumps(list(about.labels)),
            "preprocessing.json": about.preprocessing.model_dump_json(),
        }
        program.example_inputs = None  # only their shapes matter, and they would be stored
        torch.export.save(program, folder / FILE, extra_files=extra)
        return Converted()

    def import_runtime(self) -> None:
        for part in ("torch.export.pt2_archive._package", "torch.export._unlift", "torch._functorch.partitioners"):
            with suppress(ImportError):  # torch imports its own parts when it loads a program, by names that may change
                import_module(part)

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        import torch

        module = torch.export.load(io.BytesIO(files[FILE])).module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return module(torch.from_numpy(images)).numpy()

        return run
