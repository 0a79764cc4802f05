"""TorchvisionOp: torchvision's transforms, called once per image with keyed draws.

A transform of torchvision draws once per call, whatever the batch. For draws by sample it is called once per image,
with draws keyed by that image, which is as slow as a loop over a data set. A batched operation of the same meaning is
much faster; ``augment check`` measures the cost of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from augment.draws import Draws
from augment.keyed import KeyedDraws
from augment.operation import Operation


class OneSample(KeyedDraws):
    """:class:`augment.keyed.KeyedDraws` for code that gets one image: all its draws belong to that sample.

    Args:
        draws: of one operation, for one sample.
        name: the operation, for error texts.
    """

    def draw(
        self, kind: str, shape: Sequence[int], device: torch.device | None, *arguments: Any, **keywords: Any
    ) -> Tensor:
        """Draw numbers for a call of torch's random functions, all of them for the one sample.

        Args:
            kind: a method of ``Draws``: uniform, normal, bernoulli, integers or bits.
            shape: the full shape; all of it belongs to the sample.
            device: of the result; None: the CPU.
            arguments: passed to that method.
            keywords: passed to that method.

        Returns:
            A tensor of ``shape``.
        """
        self._slot += 1
        source = self._draws[True] = self._draws[True].to(device or "cpu")
        return getattr(source, kind)(self._slot, *arguments, shape=tuple(shape), **keywords)[0]

    def permutation(self, n: int, device: torch.device | None) -> Tensor:
        return self.draw("bits", (n,), device).argsort(stable=True)

    def index(self, low: int, high: int, shape: Sequence[int], device: torch.device | None) -> Tensor:
        """Uniform integers in [low, high).

        Args:
            low: the lowest.
            high: one more than the highest.
            shape: the full shape.
            device: of the result; None: the CPU.

        Returns:
            int64 of ``shape``.
        """
        return self.draw("integers", shape, device, low, high)


class TorchvisionOp(Operation):
    """Call a torchvision transform once per image [C, H, W].

    Raises (when called):
        ValueError: the transform gives no image tensor, or images of different sizes.
    """

    def __init__(self, user: Callable[[Tensor], Tensor], name: str):
        super().__init__()
        self.user = user
        self.name = name
        self.geometric = _moves_pixels(user)

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        ids = draws.ids.cpu()
        made = [self._transform(image, draws.of(ids[n : n + 1])) for n, image in enumerate(images)]
        if len({image.shape for image in made}) > 1:
            sizes = sorted({tuple(image.shape) for image in made})
            raise ValueError(f"{self.name} makes images of different sizes, {sizes}; a batch needs one")
        return torch.stack(made)

    def _transform(self, image: Tensor, draws: Draws) -> Tensor:
        with OneSample(draws, self.name):
            made = self.user(image)
        if not isinstance(made, Tensor) or made.ndim != 3:
            shown = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"{self.name} must return a tensor [C, H, W], not {shown}")
        return made


def _moves_pixels(transform: Any) -> bool:
    """Whether a transform, or one of those inside it, is geometric."""
    family = next((cls.__module__ for cls in type(transform).__mro__ if "._" in cls.__module__), "")
    return family.endswith("._geometry") or any(map(_moves_pixels, getattr(transform, "transforms", None) or ()))
