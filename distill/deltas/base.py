"""The two contracts of a delta: one that changes a weight, one that attaches modules."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import Tensor, nn

from augment.settings import Settings
from distill.registry import Component

LayerKind = ("linear", "conv", "depthwise", "norm")


class DeltaError(ValueError):
    """A delta cannot be built, attached or merged; the text names the layer and what would work."""


class DeltaSettings(Settings):
    type: str
    sites: tuple[str, ...] = Field(("*",), description="fnmatch patterns over module names, e.g. 'blocks.*.conv_pw'")
    exclude: tuple[str, ...] = Field((), description="patterns taken out again")

    @field_validator("sites", "exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class WeightDelta(nn.Module, Component):
    """A learned change of one layer's weight, and of its bias where it has one: a torch parametrization.

    Definition: ``forward(weight) → weight`` of the same shape, and ``bias(bias) → bias``. So it works on every layer
    that reads ``.weight``, keeps timm's module names, and merges exactly, by evaluating it once.

    That definition costs a full weight gradient. A delta may declare a cheaper way in ``output``, used in training on
    plain Linear and Conv2d where it is the layer's only delta, and tested equal to the definition.

    Class attributes:
        kinds: layer kinds that it applies to, of ``LayerKind`` (``depthwise`` and grouped convs are "conv" too unless a
            method tells them apart).
        identity_at_init: whether a fresh delta leaves the weight bit-equal.
        changes_bias: whether ``bias`` is more than the identity.
        no_weight_decay: names of its parameters that must not decay (scales, biases).
    """

    Settings = DeltaSettings

    kinds: ClassVar[frozenset[str]] = frozenset({"linear", "conv", "depthwise"})
    identity_at_init: ClassVar[bool] = True
    changes_bias: ClassVar[bool] = False
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: DeltaSettings, layer: nn.Module):
        """Build the parameters from the layer's shapes. Raises ``DeltaError`` where the layer cannot carry it."""
        super().__init__()
        self.settings = settings

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def bias(self, bias: Tensor) -> Tensor:
        return bias

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """The changed layer's output computed the cheap way, or None where there is none."""
        return None


class StructuralDelta(nn.Module, Component):
    """Modules attached to named blocks, or to the whole backbone; not mergeable, exported with the graph."""

    Settings = DeltaSettings

    identity_at_init: ClassVar[bool] = True

    def attach(self, backbone: nn.Module) -> None:
        raise NotImplementedError


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters as they are stored."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


__all__ = ["DeltaError", "DeltaSettings", "LayerKind", "StructuralDelta", "WeightDelta", "parameter_bytes"]
