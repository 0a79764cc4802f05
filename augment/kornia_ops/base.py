"""FusedKorniaOp, the base of the kornia augmentations that a chain can fuse: it draws their parameters."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from augment.draws import Draws
from augment.operation import Sampled

_WRAPPERS: dict[str, type[FusedKorniaOp]] = {}


class FusedKorniaOp(Sampled):
    """A kornia augmentation that a chain computes together with its neighbors.

    A subclass declares how many uniform numbers a sample takes (``uniforms``), computes kornia's parameters from them
    (:meth:`parameters`), and has the method of one form of :mod:`augment.operation`. All numbers are uniform in [0, 1),
    so that a chain draws them for all its operations at once.
    """

    wraps: ClassVar[str]
    """Name of the kornia class."""
    uniforms: int = 0
    """How many numbers :meth:`parameters` takes; one more decides whether the sample is drawn."""
    channels: int | None = None
    """How many channels images must have; None for any."""
    keeps_range: bool = True
    """Whether [0, 1] stays [0, 1]."""

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "wraps" in cls.__dict__:
            _WRAPPERS[cls.wraps] = cls

    def __init__(self, module: Any):
        self.module = module
        self.p = float(module.p)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        """Why a module with such arguments cannot be fused, or None if it can."""
        return None

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        """kornia's parameters, by kornia's names, from ``u`` [B, uniforms]; rows are samples."""
        return {}

    def from_uniforms(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        """All parameters from ``u`` [B, uniforms + 1]."""
        return {**self.parameters(u[:, : self.uniforms], shape), "drawn": u[:, self.uniforms] < self.p}

    def sample(self, draws: Draws, shape: torch.Size) -> dict[str, Tensor]:
        return self.from_uniforms(draws.uniform(0, (self.uniforms + 1,)), shape)

    def for_kornia(self, params: dict[str, Tensor], shape: torch.Size) -> dict[str, Tensor]:
        """Add what kornia's module needs beyond :meth:`parameters`, on the CPU."""
        return params

    def by_kornia(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The same operation by kornia's own code, which reads parameters on the host."""
        host = {name: value.cpu() for name, value in params.items()}
        drawn = host.pop("drawn").float()
        known = {"batch_prob": drawn, "forward_input_shape": torch.tensor(images.shape)}
        return self.module(images, params={**known, **self.for_kornia(host, images.shape)})


def ranged(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Scale uniform numbers from [0, 1) to [low, high).

    Args:
        u: uniform in [0, 1).
        low: the lowest.
        high: the highest.

    Returns:
        Of ``u``'s shape.
    """
    return u * (high - low) + low


def limits(value: Any) -> tuple[float, float]:
    """(lowest, highest) of a range as kornia's modules store it."""
    low, high = (float(end) for end in value)
    return low, high


def fused_kornia_op(module: Any) -> FusedKorniaOp | str:
    """A kornia module in a form that can be fused, or why there is none."""
    _load()
    wrapper = _WRAPPERS.get(type(module).__name__)
    if wrapper is None:
        return "kornia's own code"
    reason = wrapper.unfit(module)
    return wrapper(module) if reason is None else f"kornia's own code: {reason}"


@cache
def _load() -> None:
    import augment.kornia_ops as package

    for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(file.name)
