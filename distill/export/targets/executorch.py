"""ExecuTorch with XNNPACK, for phones: one ``.pte`` file with a fixed batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, FixedBatch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pte"


@contextmanager
def quietly() -> Iterator[None]:
    """ExecuTorch calls what Python has deprecated, and warns that it is experimental; no user can change it."""
    logger = logging.getLogger("torch.utils._pytree")  # the import of torchao registers what torch has deprecated
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="This API is experimental")
        try:
            yield
        finally:
            logger.setLevel(level)


class ExecuTorch(FixedBatch):
    """A program of ExecuTorch, computed by XNNPACK. Its runtime for Python imports torch; on a phone there is none."""

    class Settings(FixedBatch.Settings):
        type: Literal["pte"] = "pte"

    title, folder, weights = "ExecuTorch", "pte", FILE
    needs: ClassVar[Mapping[str, str]] = {"executorch": "executorch", "torchao": "torchao"}
    extra = "executorch"
    settings: Settings

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        with quietly():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        (folder / FILE).write_bytes(lowered.buffer)
        return Converted()

    def import_runtime(self) -> None:
        with quietly():
            from executorch.runtime import Runtime

            Runtime.get()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        import torch

        with quietly():
            from executorch.runtime import Runtime

            if self.threads is not None:
                from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

                _unsafe_reset_threadpool(self.threads)  # of the process: it has one pool, and no program runs yet
            program = Runtime.get().load_program(files[FILE])
            method = program.load_method("forward")
        kept = (files[FILE], program)  # the method points into their memory

        def run(images: np.ndarray) -> np.ndarray:
            assert kept
            # The runtime may give its own buffer, which the next call overwrites.
            return method.execute([torch.from_numpy(images)])[0].clone().numpy()

        return run
