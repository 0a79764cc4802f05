"""The difference between evaluation's images and those that timm's own transform makes from an exported model.

Both fit an image to the network's input with the same settings, so the difference is rounding. It is measured on real
images at every export, since versions of timm, torchvision and Pillow may differ from those that this was written for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from augment.chain import eval_view
from distill.data.canvas import Canvas
from distill.export.manifest import Preprocessing, Result

ROUNDING = 0.05
"""Mean difference, of 255, up to which it is rounding: a few values that differ by 1."""


@dataclass(frozen=True)
class TransformDifference:
    """Absolute differences of pixel values, as parts of 255."""

    mean: float
    largest: float
    images: int

    @property
    def is_rounding(self) -> bool:
        return self.mean <= ROUNDING

    @property
    def results(self) -> tuple[Result, ...]:
        """As results of the export, which its card and manifest hold."""
        return (
            Result(name="timm's transform, mean difference from evaluation / 255", value=self.mean),
            Result(name="timm's transform, largest difference from evaluation / 255", value=self.largest),
        )

    def __str__(self) -> str:
        return (
            f"timm's transform, by pretrained_cfg, differs from evaluation by {self.mean:.2g} of 255 on average and "
            f"{self.largest:.2g} at most, on {self.images} images"
        )


def transform_difference(
    about: Preprocessing, canvas: Canvas, images: Sequence[np.ndarray]
) -> TransformDifference | None:
    """Measure it.

    Args:
        about: what is exported.
        canvas: of the evaluation.
        images: uint8 [H, W, C] each, of any size.

    Returns:
        The difference; None without images, or if they have other than 1 (gray), 3 (RGB) or 4 (RGBA) channels, which
        timm's transform cannot read.
    """
    if not images or about.input_size[0] not in (1, 3, 4):
        return None
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config(pretrained_cfg=about.model_dump()))
    scale = 255 * torch.tensor(about.std).view(-1, 1, 1)
    apart = []
    for image in images:
        own = eval_view(torch.from_numpy(canvas(image).transpose(2, 0, 1).copy())[None], about.input)[0]
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        apart.append(((transform(picture) - own) * scale).abs())
    every = torch.stack(apart)
    return TransformDifference(float(every.mean()), float(every.max()), len(images))
