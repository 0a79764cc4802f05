"""RandomApply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from augment.container import Container, listed, probability
from augment.draws import Draws


class RandomApply(Container):
    """Each sample gets all of the operations, in order, or none of them.

    Args:
        transforms: the operations.
        p: probability that a sample gets them; the default is torchvision's.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([4, 5])).op("RandomApply")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).repeat(2, 1, 1, 1)
        >>> op = RandomApply([K.RandomGrayscale(p=1.0), K.RandomInvert(p=1.0)])
        >>> op(images, draws)[:, :, 0, 0]
        tensor([[0.8000, 0.4000, 0.2000],
                [0.5032, 0.5032, 0.5032]])
    """

    def __init__(self, transforms: Sequence[Any], p: float = 0.5):
        super().__init__([listed(transforms)])
        self.p = probability("p", p)

    @property
    def reason(self) -> str:  # type: ignore[override]
        return f"all or nothing, with probability {self.p:g}"

    def chosen(self, draws: Draws) -> Tensor:
        return draws.bernoulli(0, self.p, (1,))
