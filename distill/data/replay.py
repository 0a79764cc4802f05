"""Images of a memory beside new training images: their order, and what a batch says about them.

Every batch holds equally many images of the memory. In an epoch every new image is trained on once; the images of the
memory are drawn at random for each batch, none twice in it, and one that comes again in an epoch is augmented anew.
Some new images are drawn as if they were in memory already, so that what is drawn has all classes so far. With stored
logits, every second one is shown in the view that its logits were computed on, the others in a new one.

An epoch follows from (numbers of images, batch, share, seed, epoch) alone, so resuming and ranks are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.base import DataError, Sample
from distill.data.order import Order
from distill.data.split import Subset

NO_KEY = -1
"""View key of an image that is shown in a new view."""


class MemorySamples:
    """Images in memory, as a split of a source.

    Args:
        images: [M, C, H, W] uint8 or uint16, on the canvas of training.
        labels: [M] class indices.
        ids: names of the samples.
    """

    def __init__(self, images: Tensor, labels: Sequence[int], ids: Sequence[str]):
        self.images, self.labels, self.ids = images, list(labels), list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index].permute(1, 2, 0).numpy(), self.labels[index], self.ids[index])


class JoinedSamples:
    """Several subsets, one after the other, as a split of a source. Labels are those of the subsets.

    Args:
        parts: whose ids differ.

    Raises:
        DataError: two samples have the same id.
    """

    def __init__(self, parts: Sequence[Subset]):
        self.parts = tuple(parts)
        self.firsts = np.cumsum([0, *map(len, parts)])
        self.labels = np.concatenate([part.labels for part in parts])
        self.ids = [id for part in parts for id in part.ids]
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(id for id in self.ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
            raise DataError(f"two samples that are trained on together have the id {twice!r}")

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, index: int) -> Sample:
        part = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return self.parts[part][index - int(self.firsts[part])]

    def subset(self) -> Subset:
        """All samples."""
        return Subset(self, np.arange(len(self)), self.labels)  # type: ignore[arg-type]


class ReplayOrder(Order):
    """The order of new images and a memory's, see the module.

    Of a batch of B images, ``⌊B · share⌉`` are of the memory (all of it, if it has fewer), spread evenly so that each
    rank gets its part. Fewer new images than the rest of a batch make a smaller one. The last batch of an epoch is
    filled with new images that come a second time.

    Args:
        new: number of new images, which come first among the samples.
        memory: number of images in memory.
        seed: of the order.
        batch: B, over all ranks.
        share: of the memory, in (0, 1).
        world: number of ranks.
        current: indices of new images that are drawn as if they were in memory.

    Raises:
        DataError: there are fewer images than ranks.
    """

    def __init__(
        self,
        new: int,
        memory: int,
        seed: int,
        batch: int,
        share: float,
        world: int = 1,
        current: Sequence[int] = (),
    ):
        self._pool = np.concatenate([np.asarray(current, dtype=np.int64), new + np.arange(memory)])
        drawn = min(len(self._pool), max(1, min(batch - 1, round(batch * share))))
        fresh = min(new, batch - drawn)
        drawn -= (fresh + drawn) % world
        if drawn < 1:
            raise DataError(f"{new} new images and {memory} in memory make no batch for {world} ranks")
        self.new, self.memory, self.fresh, self.drawn, self.batch = new, memory, fresh, drawn, fresh + drawn
        self.batches = -(-new // fresh)
        super().__init__(self.batches * self.batch, seed, self.batch)
        at = np.concatenate([(np.arange(count) + 0.5) / count for count in (fresh, drawn)])
        self._place = np.empty(self.batch, dtype=np.int64)
        self._place[at.argsort(kind="stable")] = np.arange(self.batch)
        self.identity = {"memory": memory, "share": share, "current": len(current)}
        self._key = seed

    @property
    def most_repeats(self) -> int:
        return self.positions - 1

    def _arranged(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._key, epoch))
        new = rng.permutation(self.new)
        new = np.concatenate([new, new[: self.batches * self.fresh - self.new]]).reshape(self.batches, self.fresh)
        old = np.stack([rng.permutation(self._pool)[: self.drawn] for _ in range(self.batches)])
        order = np.empty((self.batches, self.batch), dtype=np.int64)
        order[:, self._place] = np.concatenate([new, old], axis=1)
        return order.reshape(-1)

    def drawn_at(self, position: int) -> tuple[bool, bool]:
        """Whether the image at a position of an epoch is drawn from the memory, and whether in its stored view."""
        place = int(np.flatnonzero(self._place == position % self.batch)[0]) - self.fresh
        return place >= 0, place >= 0 and place % 2 == 0


@dataclass(frozen=True)
class Replay:
    """A memory beside the new images of a training split.

    Args:
        new: number of new images, which come first among the samples.
        share: of the memory in a batch, in (0, 1).
        view_keys: [M] int64, see :meth:`augment.dual.DualAugment.forward`; None: every view is new.
        logits: [M, K] float32, on these views; NaN for a class that was not known.
        current: indices of new images that are drawn as if they were in memory.
    """

    new: int
    share: float
    view_keys: Tensor | None = None
    logits: Tensor | None = None
    current: tuple[int, ...] = ()

    def of_batch(
        self, indices: Sequence[int], drawn: Sequence[tuple[bool, bool]]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a batch says about its samples.

        Args:
            indices: [B] of the samples in the training split.
            drawn: [B] whether a sample is drawn from the memory, and whether in its stored view if it has one.

        Returns:
            [B] bool, which samples are of the memory; [B] int64 view keys, ``NO_KEY`` for a new view; and [B, K] stored
            logits, NaN in the rows of new views. The last two are None without stored logits.
        """
        at = torch.tensor(indices) - self.new
        of_memory, stored = torch.tensor(drawn).T
        is_memory = of_memory | (at >= 0)
        if self.view_keys is None or self.logits is None:
            return is_memory, None, None
        shown = (at >= 0) & stored
        rows = at.clamp(min=0)
        keys = self.view_keys[rows].where(shown, NO_KEY)
        logits = self.logits[rows].where(shown[:, None], torch.nan)
        return is_memory, keys, logits
