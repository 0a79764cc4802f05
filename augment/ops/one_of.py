"""OneOf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from augment.container import Container, Run, gathers, listed, probability
from augment.draws import Draws
from augment.fuse.color import by_sample


class OneOf(Container):
    """Each sample gets one of several operations.

    As torchvision's RandomChoice and albumentations' OneOf, but the weights are an argument of their own: the ``p``
    of an operation stays the probability that it does something once it is chosen.

    Args:
        transforms: the operations to choose from.
        weights: how often each is chosen, relative to the others; None: equally often.
        p: probability that a sample gets one of them at all.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([3, 4])).op("OneOf")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).repeat(2, 1, 1, 1)
        >>> op = OneOf([K.RandomGrayscale(p=1.0), K.RandomInvert(p=1.0)])
        >>> op(images, draws)[:, :, 0, 0]
        tensor([[0.2000, 0.6000, 0.8000],
                [0.4968, 0.4968, 0.4968]])
    """

    def __init__(self, transforms: Sequence[Any], weights: Sequence[float] | None = None, p: float = 1.0):
        transforms = listed(transforms)
        weights = [1.0] * len(transforms) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(transforms) or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(
                f"weights are {len(transforms)} numbers of 0 or more, one for each transform, not {weights}"
            )
        super().__init__([[transform] for transform in transforms])
        self.weights, self.p = weights, probability("p", p)

    @property
    def reason(self) -> str:  # type: ignore[override]
        ratio = " : ".join(f"{weight:g}" for weight in self.weights)
        return f"one of {len(self.weights)}" + (f", {ratio}" if len(set(self.weights)) > 1 else "") + _with(self.p)

    def chosen(self, draws: Draws) -> Tensor:
        limits = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        limits = (limits / limits[-1]).to(torch.float32).to(draws.ids.device)
        index = torch.searchsorted(limits, draws.uniform(0), right=True).clamp_(max=len(self.weights) - 1)
        which = torch.arange(len(self.weights), device=index.device) == index[:, None]
        return which & draws.bernoulli(1, self.p)[:, None]

    def work(self, images: Tensor, chosen: Tensor, run: Run) -> Tensor:
        if self.p < 1:  # the samples without an operation keep their size
            return super().work(images, chosen, run)
        if not gathers(images):
            made = run(0, images, None)
            for n in range(1, len(self.members)):
                made = torch.where(by_sample(chosen[:, n]), self._as_large(run(n, images, None), made), made)
            return made
        result: Tensor | None = None
        for n in range(len(self.members)):
            rows = chosen[:, n].nonzero().squeeze(1)
            if len(rows):
                made = run(n, images[rows], rows)
                result = made.new_empty(len(images), *made.shape[1:]) if result is None else result
                result[rows] = self._as_large(made, result)
        return images if result is None else result

    def _as_large(self, made: Tensor, other: Tensor) -> Tensor:
        if made.shape[1:] != other.shape[1:]:
            sizes = f"{list(made.shape[1:])} and {list(other.shape[1:])}"
            raise ValueError(f"{self.name}: its operations make images of different sizes, {sizes}; a batch needs one")
        return made


def _with(p: float) -> str:
    return f", with probability {p:g}" if p < 1 else ""
