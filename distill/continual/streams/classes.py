"""Classes that come in groups: equal ones, a large first one, or groups of given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from augment.base import did_you_mean, error_at
from distill.continual.errors import ContinualError
from distill.continual.streams.base import Stream
from distill.continual.task import Task, indices_of, numbered, splits_of
from distill.data.experiment_data import ExperimentData
from distill.data.split import by_hash

Count = Annotated[int, Field(ge=1)]


class Classes(Stream):
    """Class-incremental tasks (B0-Inc10 is ``step: 10``, B50-Inc10 ``first: 50, step: 10``).

    The classes are put in an order and then divided. A last group that is not full is a task too.

    Example:
        >>> from distill.continual.streams.classes import Classes
        >>> [list(group) for group in Classes(Classes.Settings(first=3, step=2)).groups(list("abcdef"))]
        [['a', 'b', 'c'], ['d', 'e'], ['f']]
    """

    class Settings(Stream.Settings):
        type: Literal["classes"] = "classes"
        count: int | None = Field(None, ge=1, description="number of tasks of as equal sizes as possible")
        step: int | None = Field(None, ge=1, description="number of classes of each task")
        first: int | None = Field(None, ge=1, description="number of classes of the first task; default: step")
        sizes: tuple[Count, ...] | None = Field(None, description="number of classes of every task")
        order: Literal["alphabetical", "keyed"] | tuple[str, ...] = Field(
            "alphabetical",
            description="order of the classes before they are divided: alphabetical, keyed by order_seed, or the names "
            "of all classes",
        )
        order_seed: int = Field(0, ge=0, description="of order: keyed; independent of the training seed")

        @model_validator(mode="after")
        def _one_way(self) -> Self:
            given = [key for key in ("count", "step", "sizes") if getattr(self, key) is not None]
            if len(given) != 1:
                raise error_at("count" if not given else given[-1], "give one of count, step and sizes")
            if self.first is not None and self.step is None:
                raise error_at("first", "needs step, the number of classes of the other tasks")
            return self

    settings: Settings

    def divide(self, data: ExperimentData) -> Sequence[Task]:
        groups = self.groups(self.ordered(self.labeled_classes(data)))
        splits = splits_of(data)
        return [
            Task(name, tuple(group), {split: indices_of(data, split, group) for split in splits})
            for name, group in zip(numbered(len(groups)), groups, strict=True)
        ]

    def groups(self, classes: Sequence[str]) -> list[Sequence[str]]:
        """Divide classes that are in order. Raises ``ContinualError`` if there are too few or too many."""
        settings, total = self.settings, len(classes)
        if settings.sizes is not None:
            sizes = list(settings.sizes)
            if sum(sizes) != total:
                raise ContinualError(f"stream.sizes: they add up to {sum(sizes)}, and there are {total} classes")
        elif settings.count is not None:
            if settings.count > total:
                raise ContinualError(f"stream.count: {settings.count} tasks of {total} classes leave some empty")
            sizes = [total // settings.count + (n < total % settings.count) for n in range(settings.count)]
        else:
            assert settings.step is not None
            first = settings.first or settings.step
            if first > total:
                raise ContinualError(f"stream.{'first' if settings.first else 'step'}: {first} of {total} classes")
            sizes = [first]
            while (left := total - sum(sizes)) > 0:
                sizes.append(min(settings.step, left))
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        return [classes[end - size : end] for end, size in zip(ends, sizes)]

    def ordered(self, classes: Sequence[str]) -> list[str]:
        """Classes in the order of the settings. Raises ``ContinualError`` if that does not name each of them once."""
        order = self.settings.order
        if order == "alphabetical":
            return sorted(classes)
        if order == "keyed":
            names = sorted(classes)
            return [names[i] for i in by_hash(range(len(names)), names, salt=f"class-order-{self.settings.order_seed}")]
        for name in order:
            if name not in classes:
                raise ContinualError(f"stream.order: there is no class {name!r}{did_you_mean(name, classes)}")
        if missing := [name for name in classes if name not in order]:
            raise ContinualError(f"stream.order leaves out {len(missing)} class(es), such as {missing[0]!r}")
        if len(set(order)) < len(order):
            raise ContinualError("stream.order names a class twice")
        return list(order)
