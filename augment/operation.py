"""What an operation is. A user's own class takes one of two shapes:

*sampled*, the better one, because its draws are apart from its work::

    class Tint(Sampled):
        def __init__(self, strength: float = 0.2): ...
        def sample(self, draws, shape): return draws.uniform(0, (3, 1, 1))    # [B, 3, 1, 1], by sample
        def apply(self, images, params): return images * (1 - self.strength * params)

*any* ``nn.Module`` or callable on [B, C, H, W] floats in [0, 1]. It may draw with torch's global functions: it runs in
:class:`augment.keyed.KeyedDraws`, on a batch padded to a few more rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from augment.draws import Draws
from augment.keyed import KeyedDraws, padded_rows


class Operation(nn.Module):
    """One step of a chain: ``forward(images, draws) → images``, floats [B, C, H, W] in [0, 1].

    ``draws`` are the operation's own, keyed by its name. A sample's result must depend on nothing but the sample and
    its draws. ``geometric`` says that pixels move: those operations can be shared between views.
    """

    geometric: bool = False

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError


class Sampled:
    """The contract of an operation that declares its draws. Derive from it, or just have both methods.

    Set ``geometric = True`` if it moves pixels, so that the policy ``shared_geometry`` shares it.
    """

    geometric: ClassVar[bool] = False

    def sample(self, draws: Draws, shape: torch.Size) -> Any:
        """Parameters for images of ``shape`` [B, C, H, W], drawn from ``draws`` on the images' device."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Any) -> Tensor:
        """The changed images."""
        raise NotImplementedError


class SampledOp(Operation):
    """Runs a user's object that has ``sample`` and ``apply``."""

    def __init__(self, user: Any, name: str):
        super().__init__()
        self.name = name
        self.user = user  # registered when it is a module, so that its buffers follow the device
        self.geometric = bool(getattr(user, "geometric", False))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        return self.user.apply(images, self.user.sample(draws.to(images.device), images.shape))


class BarrierOp(Operation):
    """Runs any module or callable with its random draws keyed by sample."""

    def __init__(self, user: Callable[[Tensor], Tensor], name: str):
        super().__init__()
        self.user = user
        self.name = name
        self.geometric = bool(getattr(user, "geometric", False))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        batch = len(images)
        rows = padded_rows(batch, images.shape[1:])
        padded = torch.cat([images, images[-1:].expand(rows - batch, -1, -1, -1)])
        with KeyedDraws(draws.padded(rows), self.name):
            result = self.user(padded)
        if not isinstance(result, Tensor) or result.ndim != 4 or len(result) != rows:
            shown = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{self.name} must return a tensor [{rows}, C, H, W], not {shown}")
        return result[:batch]


def kind_of(cls: type) -> Callable[[Any, str], Operation] | None:
    """How objects of a user's class are run, or None if they are no operation."""
    # Every nn.Module has an ``apply``, which is another thing.
    if callable(getattr(cls, "sample", None)) and getattr(cls, "apply", None) not in (None, nn.Module.apply):
        return SampledOp
    if any("__call__" in base.__dict__ for base in cls.__mro__):
        return BarrierOp
    return None
