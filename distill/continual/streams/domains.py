"""Domains: every task has the same classes, and images that look different."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from augment.base import error_at, is_deferred
from augment.presets import Recipe
from distill.continual.errors import ContinualError
from distill.continual.streams.base import Stream
from distill.continual.task import Task, splits_of, task_name
from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.data.recipe_samples import RecipeSamples

_KEYS = {"folder": ("level", "pattern"), "column": ("column",), "recipe": ("recipes",)}


class Domains(Stream):
    """Domain-incremental tasks, named after their domains.

    ============  =================================================================================================
    by: folder    the domain is a part of an image's id: the folder at ``level``, or what the group of ``pattern`` finds
    by: column    the domain is in a column of the source's table
    by: recipe    each domain has all images, changed by the operations of its recipe: in training, val and test alike,
                  and an image in the same way in every epoch and run. ``[]`` leaves them as they are
    ============  =================================================================================================

    The order is alphabetical, with recipes that of the config; ``task_order`` changes it.

    Protocol: domain-incremental learning, van de Ven et al., arXiv 1904.07734.

    Example:
        >>> from distill.continual.streams.domains import Domains
        >>> ids = ["train/photo/horse/1.jpg", "train/sketch/dog/7.png"]
        >>> Domains(Domains.Settings(by="folder", level=1)).domains_of(ids)
        ['photo', 'sketch']
        >>> Domains(Domains.Settings(by="folder", pattern=r"(\\d)\\.")).domains_of(ids)
        ['1', '7']
    """

    class Settings(Stream.Settings):
        type: Literal["domains"] = "domains"
        by: Literal["folder", "column", "recipe"] = Field(description="what tells the domain of an image")
        level: int | None = Field(
            None, description="by: folder: part of the id, split at '/': 0 is the first, -2 the folder of the image"
        )
        pattern: str | None = Field(
            None, description="by: folder: instead of level, a regular expression with one group, searched in the id"
        )
        column: str | None = Field(None, description="by: column: its name")
        recipes: dict[str, Recipe] | None = Field(None, description="by: recipe: domain → operations")
        recipe_seed: int = Field(0, ge=0, description="of the draws of recipes; independent of the training seed")

        @field_validator("pattern")
        @classmethod
        def _one_group(cls, pattern: str | None) -> str | None:
            try:
                groups = 1 if pattern is None else re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"it needs one group in parentheses, which is the domain; it has {groups}")
            return pattern

        @model_validator(mode="after")
        def _one_way(self, info: ValidationInfo) -> Self:
            for by, keys in _KEYS.items():
                given = [key for key in keys if getattr(self, key) is not None]
                if by == self.by and len(given) != 1:
                    raise error_at(given[-1] if given else "by", f"by: {by} needs {' or '.join(keys)}")
                if by != self.by and given:
                    raise error_at(given[0], f"it belongs to by: {by}, and by is {self.by}")
            if self.recipes is not None and not self.recipes:
                raise error_at("recipes", "name at least one domain")
            for domain, recipe in (self.recipes or {}).items() if not is_deferred(info, "operations") else ():
                if sized := [op.type for op in recipe if op.follows_network_size]:
                    raise error_at(f"recipes.{domain}", f"{sized[0]} needs a size, since a domain has no network's")
            return self

    shared_classes = True
    settings: Settings

    def divide(self, data: ExperimentData) -> Sequence[Task]:
        classes = tuple(self.labeled_classes(data))
        splits = splits_of(data)
        if self.settings.recipes is not None:
            every = {split: np.arange(len(data.subset(split))) for split in splits}
            return [
                Task(task_name(domain), classes, every, self._samples(data, domain, splits))
                for domain in self.settings.recipes
            ]
        domains = {split: np.array(self._domains(data, split)) for split in splits}
        return [
            Task(task_name(domain), classes, {split: np.flatnonzero(domains[split] == domain) for split in splits})
            for domain in sorted({domain for of_split in domains.values() for domain in of_split.tolist()})
        ]

    def domains_of(self, ids: Sequence[str]) -> list[str]:
        """The domain of each image, from its id. Raises ``ContinualError`` for an id that has none."""
        level, pattern = self.settings.level, self.settings.pattern
        domains = []
        for id in ids:
            if pattern is not None:
                match = re.search(pattern, id)
                domain = match and match[1]
                missing = f"stream.pattern {pattern!r} finds nothing in the id {id!r}"
            else:
                assert level is not None
                parts = id.split("/")
                domain = parts[level] if -len(parts) <= level < len(parts) else None
                missing = f"stream.level {level}: the id {id!r} has the parts {parts}"
            if not domain:
                raise ContinualError(missing)
            domains.append(domain)
        return domains

    def _domains(self, data: ExperimentData, split: Split) -> Sequence[str]:
        if self.settings.column is None:
            return self.domains_of(data.subset(split).ids)
        values = data.column(split, self.settings.column)
        if empty := [id for id, value in zip(data.subset(split).ids, values) if not value]:
            raise ContinualError(f"stream.column: {len(empty)} images of {split} have no value, such as {empty[0]}")
        return values

    def _samples(self, data: ExperimentData, domain: str, splits: Sequence[Split]) -> dict[Split, RecipeSamples]:
        assert self.settings.recipes is not None
        recipe, seed = self.settings.recipes[domain], self.settings.recipe_seed
        made: dict[int, RecipeSamples] = {}  # a val that is held out of train reads the same samples as train
        samples = {split: data.subset(split).samples for split in splits}
        for inner in samples.values():
            made.setdefault(id(inner), RecipeSamples(inner, domain, recipe, seed))
        return {split: made[id(inner)] for split, inner in samples.items()}
