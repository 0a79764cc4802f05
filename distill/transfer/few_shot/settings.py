"""Settings of episodes. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from augment.base import Settings, error_at
from distill.data.base import Split


class EpisodeSettings(Settings):
    """Episodes: classification problems of a few classes, each with a few labeled images and other images to test.

    An episode draws ``ways`` classes, and of each ``max(shots)`` support images and ``queries`` other ones. Fewer shots
    take the first support images, so that all shots and heads have the same classes and queries. The draws are keyed by
    the seed, the number of the episode, and the names of classes and images: they repeat exactly.
    """

    ways: int = Field(5, ge=2, description="classes of an episode")
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5), min_length=1, description="support images of each class; one column of the table for each number"
    )
    queries: int = Field(10, ge=1, description="test images of each class")
    episodes: int = Field(600, ge=2, description="number of episodes, over which the 95 % interval is")
    classes: int | tuple[str, ...] | None = Field(
        None,
        description="classes that episodes are drawn from: names, or a number of classes that the seed chooses; none: "
        "all. Meta-training draws from the others",
    )
    split: Split = Field("test", description="whose images are drawn, both support and queries")

    @model_validator(mode="after")
    def _enough_classes(self) -> Self:
        count = self.classes if isinstance(self.classes, int) or self.classes is None else len(set(self.classes))
        if count is not None and count < self.ways:
            raise error_at("classes", f"{count} classes, and an episode has ways: {self.ways}")
        if len(set(self.shots)) < len(self.shots):
            raise error_at("shots", "each number once")
        return self
