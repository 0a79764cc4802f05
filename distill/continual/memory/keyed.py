"""A uniform sample of all images so far: those with the smallest keyed hash of (seed, sample id).

The hash of an image does not depend on when it comes, so neither does the memory: any order, batches and restarts give
the same images, and a smaller budget a subset of them. Reservoir sampling (Vitter 1985) gives a sample of the same
distribution that depends on all of these.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from augment.draws import Draws
from distill.continual.memory.base import Candidates, Memory, Selection, joined, quotas


def keyed_order(ids_N: Tensor, seed: int) -> Tensor:
    """[N] int64, the rows of ids by rising hash; equal hashes by id."""
    hashes = Draws(seed, 0, "memory", ids_N).op("keyed").bits(0)
    by_id = ids_N.argsort()
    return by_id[hashes[by_id].argsort(stable=True)]


class KeyedMemory(Memory):
    """The images with the smallest hashes, of each class or of all.

    >>> import torch
    >>> from distill.continual.memory.base import Candidates
    >>> from distill.continual.memory.keyed import KeyedMemory
    >>> memory = KeyedMemory(KeyedMemory.Settings(budget=3, per_class=False))
    >>> ids = torch.arange(100)
    >>> kept = memory.select(Candidates(ids, ["ash"] * 100), 3)
    >>> again = memory.select(Candidates(ids.flip(0), ["ash"] * 100), 3)
    >>> torch.equal(ids[kept.rows], ids.flip(0)[again.rows])
    True
    """

    class Settings(Memory.Settings):
        type: Literal["keyed"] = "keyed"
        per_class: bool = Field(True, description="equally many images of each class, instead of a sample of all")
        seed: int = Field(0, ge=0, description="of the hash")

    settings: Settings

    def _select(self, candidates: Candidates, capacity: int) -> Selection:
        order = keyed_order(candidates.ids, self.settings.seed)
        if not self.settings.per_class:
            return joined([order[:capacity]])
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order))
        classes = candidates.by_class()
        places = quotas(list(classes), capacity)
        return joined([rows[position[rows].argsort()][: places[name]] for name, rows in classes.items()])
