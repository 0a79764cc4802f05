"""Images that come in parts: every task has the same classes, and new images of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from distill.continual.errors import ContinualError
from distill.continual.streams.base import Stream
from distill.continual.task import Task, numbered, splits_of
from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.data.split import by_hash


class Images(Stream):
    """Data-incremental tasks: the training images in parts of as equal sizes as possible, stratified by class.

    The hash of its id and the seed decide in which part an image is. Images without a label are divided too, so the
    stream needs no labels. Every task is evaluated on all images of val and test.

    Protocol: data-incremental learning of Fini et al., CaSSLe, arXiv 2112.04215.

    Example:
        >>> import numpy as np
        >>> from distill.continual.streams.images import Images
        >>> stream = Images(Images.Settings(count=2))
        >>> [part.tolist() for part in stream.parts(list("abcdef"), np.array([0, 0, 0, 0, 1, 1]))]
        [[0, 3, 4], [1, 2, 5]]
    """

    class Settings(Stream.Settings):
        type: Literal["images"] = "images"
        count: int = Field(ge=1, description="number of tasks")
        order_seed: int = Field(0, ge=0, description="of the parts; independent of the training seed")

    shared_classes = True
    settings: Settings

    def divide(self, data: ExperimentData) -> Sequence[Task]:
        train = data.subset("train")
        if self.settings.count > len(train):
            raise ContinualError(f"stream.count: {self.settings.count} tasks of {len(train)} training images")
        every: dict[Split, np.ndarray] = {split: np.arange(len(data.subset(split))) for split in splits_of(data)}
        return [
            Task(name, tuple(data.classes), {**every, "train": part})
            for name, part in zip(numbered(self.settings.count), self.parts(train.ids, train.labels), strict=True)
        ]

    def parts(self, ids: Sequence[str], labels_N: np.ndarray) -> list[np.ndarray]:
        """Positions of the images of each part, in their order.

        Args:
            ids: of N images.
            labels_N: [N]; those without a label count as one class.

        Returns:
            As many parts as there are tasks.
        """
        dealt: list[int] = []
        for label in np.unique(labels_N):
            members = np.flatnonzero(labels_N == label)
            dealt += by_hash(members, ids, salt=f"images-{self.settings.order_seed}")
        return [np.sort(np.array(dealt[number :: self.settings.count])) for number in range(self.settings.count)]
