"""Sequential."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from augment.container import Container, Run
from augment.draws import Draws


class Sequential(Container):
    """Operations in order, as one: a member of :class:`OneOf` or :class:`SomeOf`.

    Args:
        transforms: the operations; none of them changes nothing.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Sequential")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = Sequential([K.RandomInvert(p=1.0), K.RandomBrightness((0.5, 0.5), p=1.0)])
        >>> op(images, draws).flatten()
        tensor([0.0000, 0.1000, 0.3000])
    """

    def __init__(self, transforms: Sequence[Any]):
        if not isinstance(transforms, list | tuple):
            raise ValueError(f"transforms is a list of operations, not {transforms!r}")
        super().__init__([list(transforms)])

    @property
    def reason(self) -> str:  # type: ignore[override]
        return "all in order"

    def chosen(self, draws: Draws) -> Tensor:
        return torch.ones(len(draws), 1, dtype=torch.bool, device=draws.ids.device)

    def work(self, images: Tensor, chosen: Tensor, run: Run) -> Tensor:
        return run(0, images, None)
