"""The interface of a stage: one step of a run, with typed inputs, an output that can be loaded, and items to report.

A run is a list of stages, an experiment's ``plan()``, which :func:`distill.run.runner.run_plan` runs. A stage is a
frozen dataclass whose fields are settings and references to outputs of earlier stages. A minimal stage::

    @dataclass(frozen=True)
    class CountImages(Stage[int]):
        split: Split = "train"

        def key(self, context):
            return {"data": context.data.fingerprint(), "split": self.split}

        def run(self, context, folder):
            count = len(context.data.subset(self.split))
            write_atomic(folder / "count.txt", str(count).encode())
            return count

        def load(self, context, folder):
            return int((folder / "count.txt").read_text())

        def report(self, context, output):
            yield Note(text=f"{output} images of {self.split}")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from augment.base import UserError
from distill.report.items import Item

if TYPE_CHECKING:
    from distill.run.context import RunContext

Output = TypeVar("Output")


class StageError(UserError, ValueError):
    """A stage cannot run with this data or these networks; the text gives the reason."""


@dataclass(frozen=True)
class Ref(Generic[Output]):
    """A reference to the output of an earlier stage: ``stage.output``, or ``Ref("student", TrainedStudent)``.

    Args:
        stage: name of the stage.
        type: of its output; the runner compares it with the type that the stage declares, before any stage runs.
    """

    stage: str
    type: type[Output]


@dataclass(frozen=True)
class Stage(ABC, Generic[Output]):
    """One step of a run.

    Args:
        name: unique in the run, and the stage's folder in it: ``student``, ``task-3/student``.

    Class attributes:
        first_rank: whether only the first of several processes runs it, such as a stage that only writes files.
        recorded: whether a finished output is recorded, and loaded instead of computed again.
    """

    name: str

    first_rank: ClassVar[bool] = False
    recorded: ClassVar[bool] = True

    @property
    def output(self) -> Ref[Output]:
        """A reference to this stage's output, for later stages."""
        return Ref(self.name, self.output_type())

    @classmethod
    def output_type(cls) -> type:
        """The type T of the output, from ``Stage[T]``."""
        for parent in cls.__mro__:
            for base in getattr(parent, "__orig_bases__", ()):
                if get_origin(base) is Stage and not isinstance(declared := get_args(base)[0], TypeVar):
                    return get_origin(declared) or declared
        raise TypeError(f"{cls.__qualname__} must derive from Stage[T], T the type of its output")

    def refs(self) -> list[Ref[Any]]:
        """The references among the fields, in their order."""
        return list(_refs_in(getattr(self, field.name) for field in fields(self)))

    def check_files(self) -> None:
        """Raise ``UserError`` for a file of weights that cannot be used.

        The runner calls it for each stage before it creates the run folder and opens the data.
        """
        return None

    def check(self, context: RunContext) -> Output | None:
        """Raise ``UserError`` for every error that can be found before training, and try the stage's work.

        The runner calls it for each unfinished stage before it runs the first one.

        Args:
            context: with ``trial`` set: its loaders give one small batch of a split, and its outputs are those that the
                checks of earlier stages returned, see :meth:`RunContext.find`.

        Returns:
            An untrained output for the checks of later stages, or None. The items that the stage reports about it are
            in ``context.items`` for these checks.
        """
        return None

    @abstractmethod
    def key(self, context: RunContext) -> Mapping[str, Any]:
        """Plain values of everything that the output depends on, except the seed and the outputs that it refers to."""

    def store(self, context: RunContext, digest: str) -> Path | None:
        """Folder of an output that all runs share, by the digest of its key; None: in the run folder, not shared."""
        return None

    @abstractmethod
    def run(self, context: RunContext, folder: Path) -> Output:
        """Compute the output, and write the files for :meth:`load` into ``folder``; resumes an interrupted run."""

    @abstractmethod
    def load(self, context: RunContext, folder: Path) -> Output:
        """Load the output of a finished :meth:`run` from its folder."""

    def report(self, context: RunContext, output: Output) -> Iterable[Item]:
        """The items of the report about the output."""
        return ()


def _refs_in(values: Iterable[Any]) -> Iterator[Ref[Any]]:
    for value in values:
        if isinstance(value, Ref):
            yield value
        elif isinstance(value, tuple):
            yield from _refs_in(value)
