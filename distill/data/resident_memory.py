"""A task's images on the device, then those of a memory: what training reads with ``data.on_device`` and a memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from distill.data.canvas import Canvas
from distill.data.replay import JoinedSamples, MemorySamples
from distill.data.resident import Resident, select_rows
from distill.data.settings import DataSettings
from distill.data.split import Subset


class ResidentWithMemory(Resident):
    """The training images of a task and a memory on one device. Those of a split are copied from where they lie.

    Args:
        samples: subsets of a split and of a memory, or those of a memory alone.
        resident: gives the images of the split that a subset is of.
        canvas: of training, which a memory's images are on.
        settings: of the data.
        device: for the images.
    """

    def __init__(
        self,
        samples: JoinedSamples | MemorySamples,
        resident: Callable[[Subset], Resident],
        canvas: Canvas,
        settings: DataSettings,
        device: torch.device,
    ):
        super().__init__(samples, "train", canvas, settings, device)  # type: ignore[arg-type]
        self.resident = resident

    @cached_property
    def images(self) -> Tensor:
        """uint8 or uint16 [N, C, H, W], in the order of the samples. Raises ``DataError`` as :class:`Resident` does."""
        if isinstance(self.samples, MemorySamples):
            return self.samples.images.to(self.device)
        assert isinstance(self.samples, JoinedSamples)
        chosen, first = [], 0
        for part in self.samples.parts:
            rows = torch.from_numpy(part.indices)
            if isinstance(part.samples, MemorySamples):
                chosen.append(select_rows(part.samples.images, rows).to(self.device))
            else:
                own = self.resident(part)
                chosen.append(select_rows(own.images, rows.to(self.device)))
                place = {row: first + number for number, row in enumerate(rows.tolist())}
                self.unreadable |= {place[row]: why for row, why in own.unreadable.items() if row in place}
            first += len(part)
        return torch.cat(chosen)


def holds_memory(subset: Subset) -> bool:
    """Whether a subset has images of a memory, which are on the canvas of training."""
    parts = subset.samples.parts if isinstance(subset.samples, JoinedSamples) else (subset,)
    return any(isinstance(part.samples, MemorySamples) for part in parts)
