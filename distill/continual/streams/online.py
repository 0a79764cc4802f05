"""Online streams: a single pass over the images, and a class does not end where the next ones begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from distill.continual.streams.classes import Classes
from distill.continual.task import Task, indices_of, numbered, splits_of
from distill.data.experiment_data import ExperimentData
from distill.data.split import by_hash


class Online(Classes):
    """A single pass over groups of classes with blurred boundaries.

    The classes are divided as by the stream ``classes``. A fraction ``disjoint`` of them, chosen by hash, is in one
    group only. Of each other class, the fraction ``blur`` of its training images moves to other groups. A task is the
    stretch between two evaluations, of which what learns must not be told: one epoch and a constant learning rate are
    demanded, and refused are strategies that do not train the same weights further, the previous model as a teacher
    and regularizers.

    Three things happen at the end of a stretch nonetheless: its last batch is filled with images that come a second
    time, the state of the optimizer starts anew, and a memory is filled from the stretch's images, so that they are
    replayed from the next stretch on.

    A task is evaluated on all test images of the classes of its training images, so that those of a class in two tasks
    count for both. Images of val stay with the group of their class.

    Papers: Koh et al., i-Blurry, arXiv 2110.10031, whose 50 % disjoint classes and 10 % blur are the defaults; Moon et
    al., Si-Blurry, arXiv 2308.09303, where the number of disjoint classes varies by task, as here.
    Deviation: images move to the neighboring groups; ``spread: all`` is the papers' way.

    Example:
        >>> from distill.continual.streams.online import Online
        >>> stream = Online(Online.Settings(count=3))
        >>> [stream.others(home, 3) for home in range(3)]
        [[1], [0, 2], [1]]
    """

    class Settings(Classes.Settings):
        type: Literal["online"] = "online"  # type: ignore[assignment]
        disjoint: float = Field(0.5, ge=0, le=1, description="fraction of the classes that are in one task only")
        blur: float = Field(
            0.1, ge=0, lt=1, description="fraction of the training images of each other class that other tasks get"
        )
        spread: Literal["neighbors", "all"] = Field("neighbors", description="the tasks that get them")
        blur_seed: int = Field(
            0,
            ge=0,
            description="selects the disjoint classes and the images that move; independent of the training seed",
        )

    shared_classes = True
    epochs: ClassVar[int | None] = 1
    boundaries: ClassVar[bool] = False
    settings: Settings

    def divide(self, data: ExperimentData) -> Sequence[Task]:
        groups = self.groups(self.ordered(self.labeled_classes(data)))
        train = data.subset("train")
        parts: list[list[int]] = [[] for _ in groups]
        present = [list(group) for group in groups]
        blurred = self._blurred([name for group in groups for name in group])
        for home, group in enumerate(groups):
            for name in group:
                members = indices_of(data, "train", [name])
                if name not in blurred:
                    parts[home] += members.tolist()
                    continue
                for number, rows in enumerate(self._moved(members, train.ids, home, len(groups))):
                    parts[number] += rows
                    if rows and number != home:
                        present[number].append(name)
        tasks = []
        for name, rows, classes, group in zip(numbered(len(groups)), parts, present, groups, strict=True):
            indices = {
                split: indices_of(data, split, classes if split == "test" else group) for split in splits_of(data)
            }
            if not data.has_split("test"):
                indices["val"] = indices_of(data, "val", classes)
            tasks.append(Task(name, tuple(classes), {**indices, "train": np.array(sorted(rows), dtype=np.int64)}))
        return tasks

    def others(self, home: int, tasks: int) -> list[int]:
        """Indices of the tasks that images of the group ``home`` move to, of ``tasks``."""
        if self.settings.spread == "all":
            return [number for number in range(tasks) if number != home]
        return [number for number in (home - 1, home + 1) if 0 <= number < tasks]

    def _blurred(self, classes: Sequence[str]) -> set[str]:
        """The classes that are not disjoint."""
        count = round(self.settings.disjoint * len(classes))
        order = by_hash(range(len(classes)), classes, salt=f"disjoint-{self.settings.blur_seed}")
        return {classes[index] for index in order[count:]}

    def _moved(self, members: np.ndarray, ids: Sequence[str], home: int, tasks: int) -> list[list[int]]:
        """The images of a class in each task: at least one stays at home."""
        parts: list[list[int]] = [[] for _ in range(tasks)]
        others = self.others(home, tasks)
        order = by_hash(members, ids, salt=f"blur-{self.settings.blur_seed}")
        count = min(round(self.settings.blur * len(order)), len(order) - 1) if others else 0
        for number, index in enumerate(order[:count]):
            parts[others[number % len(others)]].append(index)
        parts[home] = order[count:]
        return parts
