"""Metadata stored with exported weights: preprocessing and results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from augment.base import Settings
from augment.views import InputSpec

if TYPE_CHECKING:  # an exported student is opened without torch, and its manifest has these settings
    from torch import nn


class Preprocessing(Settings):
    """How an image becomes the network's input: resized to ``size / crop_pct``, center-cropped, normalized."""

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = Field(1.0, gt=0)
    crop_mode: str = "center"

    @property
    def input(self) -> InputSpec:
        """Size and normalization of the network's input."""
        _, height, width = self.input_size
        return InputSpec((height, width), self.mean, self.std)

    @classmethod
    def of(cls, model: nn.Module, size: tuple[int, int] | None = None) -> Preprocessing:
        """The preprocessing that a timm model declares, with another height and width if given."""
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        channels, *declared = config["input_size"]
        fields = {name: config[name] for name in cls.model_fields if name in config}
        return cls(**{**fields, "input_size": (channels, *(size or declared))})


class Result(Settings):
    """One measured number."""

    name: str
    """For instance ``test/top1``."""
    value: float
    seed: int | None = None
    low: float | None = None
    """Lower end of the 95 % interval over the images of the split."""
    high: float | None = None


def model_arguments(model: nn.Module, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of ``timm.create_model``, besides the name and the number of classes, that build this model again.

    Recent timm releases record them on the model; ``arguments`` replaces what is recorded.
    """
    recorded: Any = getattr(model, "_model_args", {})
    chosen = recorded if arguments is None else arguments
    return {name: value for name, value in chosen.items() if name != "num_classes" and value is not None}
