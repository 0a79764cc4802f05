"""The difference between evaluation's images and those that timm's own transform makes from an exported model.

Both fit an image to the network's input with the same settings, so the difference is rounding. It is measured on real
images at every export, since versions of timm, torchvision and Pillow may differ from those that this was written for.

timm's transform takes pictures of 8 bits: Pillow has no colors of 16 bits, and timm's loader converts gray ones to RGB,
which cuts them off at 255. Evaluation keeps all bits (:mod:`distill.data.bits_in_use`), so for images of 16 bits the
difference is measured from their highest 8, which are what a caller of the transform has to give it. Channel by
channel, as the card of other numbers of channels says, it takes all 16 bits as floats, which differ where Pillow clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from augment.chain import eval_view
from distill.data.canvas import Canvas
from distill.data.depth import eight_bits
from distill.export.manifest import Preprocessing, Result

ROUNDING = 0.05
"""Mean difference, of 255, up to which it is rounding: a few values that differ by 1."""


@dataclass(frozen=True)
class TransformDifference:
    """Absolute differences of pixel values, as parts of 255."""

    mean: float
    largest: float
    images: int
    channelwise: int = 0
    """Number of the images' channels, if timm's transform can read them one by one only; else 0."""
    depth: int = 8
    """Bits of a value of the evaluated images; the transform takes 8, channel by channel 16."""

    @property
    def _cut(self) -> bool:
        """Whether the transform gets only the highest 8 of 16 bits."""
        return self.depth == 16 and not self.channelwise

    @property
    def is_rounding(self) -> bool:
        return self.mean <= ROUNDING

    @property
    def results(self) -> tuple[Result, ...]:
        """As results of the export, which its card and manifest hold."""
        how = "timm's transform, channel by channel," if self.channelwise else "timm's transform,"
        return (
            Result(name=f"{how} mean difference from evaluation / 255", value=self.mean),
            Result(name=f"{how} largest difference from evaluation / 255", value=self.largest),
        )

    @property
    def note(self) -> str:
        """What a user of the merged folder has to know; empty if timm's transform makes evaluation's images."""
        if self.is_rounding and not self.channelwise:
            return ""
        if self._cut:
            return f"{self}; give it the highest 8 of the bits in use"
        return f"{self}; prepare images as the export's card says"

    def __str__(self) -> str:
        apart = (
            f"differs from evaluation by {self.mean:.2g} of 255 on average and {self.largest:.2g} at most, on "
            f"{self.images} images"
            + (", since it takes pictures of 8 bits and evaluation keeps 16" if self._cut else "")
        )
        if self.channelwise:
            return (
                f"timm's transform cannot read images of {self.channelwise} channels, since Pillow has none; channel "
                f"by channel it {apart}"
            )
        return f"timm's transform, by pretrained_cfg, {apart}"


def transform_difference(
    about: Preprocessing, canvas: Canvas, images: Sequence[np.ndarray]
) -> TransformDifference | None:
    """Measure it.

    Args:
        about: what is exported.
        canvas: of the evaluation.
        images: uint8 or uint16 [H, W, C] each, of any size.

    Returns:
        The difference; None without images. Other than 1 (gray), 3 (RGB) or 4 (RGBA) channels are transformed one by
        one, as the card says.
    """
    if not images:
        return None
    from timm.data import create_transform, resolve_data_config

    def transform_of(part: Preprocessing) -> Any:
        return create_transform(**resolve_data_config(pretrained_cfg=part.model_dump()))

    channels, height, width = about.input_size
    channelwise = 0 if channels in (1, 3, 4) else channels
    by_channel = [
        transform_of(about.model_copy(update={"input_size": (1, height, width), "mean": (mean,), "std": (std,)}))
        for mean, std in zip(about.mean, about.std, strict=True)
    ]
    transform = None if channelwise else transform_of(about)

    def transformed(image: np.ndarray) -> torch.Tensor:
        if transform is not None:
            return transform(Image.fromarray(image[:, :, 0] if channels == 1 else image))
        return torch.cat([channel(image[:, :, c], c) for c in range(channels)])

    def channel(values: np.ndarray, number: int) -> torch.Tensor:
        """One channel, as the card does it."""
        if values.dtype == np.uint8:
            return by_channel[number](Image.fromarray(values))
        mean, std = about.mean[number], about.std[number]
        part = by_channel[number](Image.fromarray(values.astype(np.float32) / 257))
        return (((part * std + mean) / 255).clamp(0, 1) - mean) / std

    scale = 255 * torch.tensor(about.std).view(-1, 1, 1)
    apart = []
    for image in images:
        own = eval_view(torch.from_numpy(canvas(image).transpose(2, 0, 1).copy())[None], about.input)[0]
        image = eight_bits(image, 16) if image.dtype == np.uint16 and transform is not None else image
        apart.append(((transformed(image) - own) * scale).abs())
    every = torch.stack(apart)
    return TransformDifference(float(every.mean()), float(every.max()), len(images), channelwise, canvas.depth)
