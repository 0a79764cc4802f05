"""SomeOf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from augment.container import Container, listed, probability
from augment.draws import Draws


class SomeOf(Container):
    """Each sample gets some of several operations, in the order of the list.

    As albumentations' SomeOf without replacement; here ``n`` may be a range.

    Args:
        transforms: the operations to choose from, all with the same probability.
        n: how many a sample gets; a number, or [fewest, most] to draw between.
        p: probability that a sample gets any of them at all.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([1, 2, 6])).op("SomeOf")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).repeat(3, 1, 1, 1)
        >>> op = SomeOf([K.RandomGrayscale(p=1.0), K.RandomInvert(p=1.0), K.RandomHorizontalFlip(p=1.0)], n=2)
        >>> op(images, draws)[:, :, 0, 0]
        tensor([[0.4968, 0.4968, 0.4968],
                [0.2000, 0.6000, 0.8000],
                [0.5032, 0.5032, 0.5032]])
    """

    def __init__(self, transforms: Sequence[Any], n: int | tuple[int, int] = 1, p: float = 1.0):
        transforms = listed(transforms)
        low, high = (n, n) if isinstance(n, int) else n
        if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high <= len(transforms)):
            raise ValueError(f"n is a number or [fewest, most] in 0 … {len(transforms)}, the transforms, not {n}")
        super().__init__([[transform] for transform in transforms])
        self.n, self.p = (low, high), probability("p", p)

    @property
    def reason(self) -> str:  # type: ignore[override]
        low, high = self.n
        count = f"{low}" if low == high else f"{low} to {high}"
        return f"{count} of {len(self.members)}" + (f", with probability {self.p:g}" if self.p < 1 else "")

    def chosen(self, draws: Draws) -> Tensor:
        rank = draws.permutation(0, len(self.members)).argsort(dim=1, stable=True)
        count = draws.integers(1, self.n[0], self.n[1] + 1, (1,))
        return (rank < count) & draws.bernoulli(2, self.p, (1,))
