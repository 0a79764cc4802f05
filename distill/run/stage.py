"""The contract of a stage: one step of a run, with typed inputs, an output that can be loaded, and items to report.

A run is a list of stages (an experiment's ``plan()``), carried out by :func:`distill.run.runner.run_plan`. A stage is a
frozen dataclass: its fields are settings and references to outputs of earlier stages. A minimal one::

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
    """A stage cannot run on this data or with these networks; the text says what does not fit."""


@dataclass(frozen=True)
class Ref(Generic[Output]):
    """A reference to what an earlier stage makes: ``stage.output``, or ``Ref("student", TrainedStudent)``.

    Args:
        stage: name of the stage.
        type: of its output; the runner compares it with what the stage declares before anything runs.
    """

    stage: str
    type: type[Output]


@dataclass(frozen=True)
class Stage(ABC, Generic[Output]):
    """One step of a run.

    Args:
        name: unique in the run, and the stage's folder in it: ``student``, ``task-3/student``.

    Class attributes:
        first_rank: with several processes, only the first one runs it (what writes files and trains nothing).
        recorded: whether a finished output is recorded and loaded instead of made again.
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
        """The ``T`` of ``Stage[T]``."""
        for parent in cls.__mro__:
            for base in getattr(parent, "__orig_bases__", ()):
                if get_origin(base) is Stage and not isinstance(declared := get_args(base)[0], TypeVar):
                    return get_origin(declared) or declared
        raise TypeError(f"{cls.__qualname__} must derive from Stage[T], T the type of its output")

    def refs(self) -> list[Ref[Any]]:
        """The references among the fields, in their order."""
        return list(_refs_in(getattr(self, field.name) for field in fields(self)))

    def check(self, context: RunContext) -> None:
        """Raise ``UserError`` for everything that can be known to be wrong before anything is trained.

        The runner calls it for all stages that are not finished, before it runs the first one. Outputs of earlier
        stages do not exist yet.
        """
        return None

    @abstractmethod
    def key(self, context: RunContext) -> Mapping[str, Any]:
        """Plain values of everything that the output depends on, beside the seed and the outputs that it refers to."""

    def store(self, context: RunContext, digest: str) -> Path | None:
        """Where outputs of that key digest are kept for all runs; None: in the run folder, for this run alone."""
        return None

    @abstractmethod
    def run(self, context: RunContext, folder: Path) -> Output:
        """Make the output; write into ``folder`` what :meth:`load` needs. Resumes what an interruption left there."""

    @abstractmethod
    def load(self, context: RunContext, folder: Path) -> Output:
        """The output of a finished :meth:`run`, from its folder."""

    def report(self, context: RunContext, output: Output) -> Iterable[Item]:
        """What the report shows of the output."""
        return ()


def _refs_in(values: Iterable[Any]) -> Iterator[Ref[Any]]:
    for value in values:
        if isinstance(value, Ref):
            yield value
        elif isinstance(value, tuple):
            yield from _refs_in(value)
