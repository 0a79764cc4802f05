"""The result of learning a stream up to some task: networks, and the classes that each of them predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distill.models.network import Network
from distill.models.settings import NetworkSettings


@dataclass(frozen=True)
class LearnedNetwork:
    """A network of a learner.

    Args:
        name: unique among all networks of the stream; a network that later tasks do not change keeps its name.
        classes: names of the classes of its logits, in their order.
        load: reads it from its files: in eval mode, on the CPU.
        served: bytes of its files that prediction needs, besides the backbone.
        kept: bytes of everything that is kept for later tasks.
        trained: number of trained parameters.
        folder: of its files: a delta folder, or a timm folder of the whole network; None: it is in memory alone.
        network: the backbone of a delta folder.
        changed: whether the newest task has changed a network of an earlier one.
    """

    name: str
    classes: tuple[str, ...]
    load: Callable[[], Network] = field(repr=False, compare=False)
    served: int
    kept: int
    trained: int = 0
    folder: Path | None = None
    network: NetworkSettings | None = None
    changed: bool = False


@dataclass(frozen=True)
class LearnedTask:
    """A learner after a task.

    Args:
        task: name of the task.
        classes: of all tasks so far, in the order in which they came: the columns of the class-incremental logits.
        parts: one network for all classes, or one for each task so far, in the order of the tasks.
        folder: of the stage; holds what the next task starts from.
        first: folder of the stage of the first task.
        seconds: wall time of the training of this task.
        features: the network whose features the closed-form heads are fitted on, if the strategy adapts one for that.
        peak: bytes of files at the end of the task, with those that only its training needs.
        backbone: bytes of the backbone's weights without its head.
        memory: file of the memory after the task; None: there is none.
        folders: of the stages of all tasks so far, this one last.
    """

    task: str
    classes: tuple[str, ...]
    parts: tuple[LearnedNetwork, ...]
    folder: Path
    first: Path
    seconds: float = 0.0
    features: LearnedNetwork | None = None
    peak: int = 0
    backbone: int = 0
    memory: Path | None = None
    folders: tuple[Path, ...] = ()

    @property
    def newest(self) -> LearnedNetwork:
        """The network that learned this task."""
        return self.parts[-1]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
