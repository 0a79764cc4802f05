"""ncnn, for phones, by pnnx: a text file of layers and a binary of fp16 weights, with a fixed batch of one image."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distill.export.artifact import ProgramManifest, as_files
from distill.export.checksummed import ExportError
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, ProgramTarget

if TYPE_CHECKING:
    from torch.export import ExportedProgram

LAYERS, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"


class Ncnn(ProgramTarget):
    """A model of ncnn. pnnx reads TorchScript, which is traced from the same program; ncnn stores fp16 weights."""

    class Settings(ProgramTarget.Settings):
        type: Literal["ncnn"] = "ncnn"
        input: Literal["float"] = "float"  # its images are floats

    title, folder, weights = "ncnn", "ncnn", WEIGHTS
    tolerance, agreement = 1e-2, 0.998
    batch = 1
    needs: ClassVar[Mapping[str, str]] = {"pnnx": "pnnx", "ncnn": "ncnn"}
    settings: Settings

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        import pnnx
        import torch

        assert about.preprocessing is not None
        example = torch.zeros(1, *about.preprocessing.input_size)
        with tempfile.TemporaryDirectory(prefix="distill-") as name:
            work = Path(name)
            with torch.no_grad(), warnings.catch_warnings():
                # pnnx reads nothing else than what torch has deprecated; the program is traced for the second time.
                warnings.simplefilter("ignore")
                torch.jit.trace(program.module(check_guards=False), example, check_trace=False).save(
                    str(work / "model.pt")
                )
            shape = f"inputshape=[{','.join(map(str, example.shape))}]"
            command = [pnnx.EXEC_PATH, "model.pt", shape]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace")
            if done.returncode or not (work / WEIGHTS).is_file():
                raise ExportError(f"{self.title}: pnnx failed:\n{(done.stdout + done.stderr)[-1000:]}")
            lacking = [line for line in done.stderr.splitlines() if "not supported" in line]
            if lacking:
                raise ExportError(f"{self.title} cannot hold the student: {'; '.join(lacking)}")
            for file in (LAYERS, WEIGHTS):
                (folder / file).write_bytes((work / file).read_bytes())
        return Converted()

    def import_runtime(self) -> None:
        import ncnn  # noqa: F401

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        import ncnn

        net = ncnn.Net()
        if self.threads is not None:
            net.opt.num_threads = self.threads
        with as_files(files) as folder:
            if net.load_param(str(folder / LAYERS)) or net.load_model(str(folder / WEIGHTS)):
                raise ExportError(f"{self.title} cannot load the model")

        def run(images: np.ndarray) -> np.ndarray:
            with net.create_extractor() as extractor:
                extractor.input("in0", ncnn.Mat(images[0]).clone())
                return np.array(extractor.extract("out0")[1])[None]

        return run
