"""The strong chain of ``augment.py`` by each library, on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable

import kornia.augmentation as K
import measure  # noqa: F401  # this folder's augment.py must not hide the package
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augment.chain import Chain
from augment.draws import Draws
from augment.recipe import Op
from augment.views import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


SIZES = {32: (128, 3), 64: (128, 7), 224: (32, 23)}


def strong(kernel: int) -> list[Op]:
    return [
        Op.of("RandomResizedCrop", scale=[0.3, 1.0]),
        Op.of("RandomHorizontalFlip"),
        Op.of("ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Op.of("RandomGrayscale", p=0.2),
        Op.of("RandomGaussianBlur", kernel_size=[kernel, kernel], sigma=[0.1, 2.0], p=0.5),
        Op.of("RandomErasing", p=0.25),
    ]


def source(batch: int, pixels: int, device: str = "cpu") -> Tensor:
    side = pixels + pixels // 8
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, 3, 8, 8, generator=generator)
    images = F.interpolate(smooth, (side, side), mode="bicubic").add(0.1 * torch.rand(batch, 3, side, side)).clamp(0, 1)
    return images.mul(255).to(torch.uint8).to(device)


def fused_chain(images: Tensor, pixels: int, kernel: int, compile: bool | str = "auto") -> Callable[[], Tensor]:
    chain = Chain(strong(kernel), (pixels, pixels), compile=compile)  # type: ignore[arg-type]
    ids, spec = torch.arange(len(images)), InputSpec((pixels, pixels), MEAN, STD)
    calls = iter(range(10**9))
    return lambda: chain(images, Draws(0, next(calls), "student", ids), spec=spec)


def kornia_chain(images: Tensor, pixels: int, kernel: int, compile: bool = False) -> Callable[[], Tensor]:
    size = (pixels, pixels)
    steps = [
        K.RandomResizedCrop(size, scale=(0.3, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        K.Normalize(MEAN, STD),
        K.RandomErasing(p=0.25),
    ]
    # AugmentationSequential with a crop does not compile; a plain sequence of the same modules does.
    chain = torch.compile(nn.Sequential(*steps)) if compile else K.AugmentationSequential(*steps)
    return lambda: chain(images.float() / 255)


def torchvision_chain(images: Tensor, pixels: int, kernel: int) -> Callable[[], Tensor]:
    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomResizedCrop(pixels, scale=(0.3, 1.0), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=0.25),
        ]
    )
    return lambda: torch.stack([chain(image) for image in images])


def albumentations_chain(images: Tensor, pixels: int, kernel: int) -> Callable[[], Tensor]:

    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    chain = A.Compose(
        [
            A.RandomResizedCrop((pixels, pixels), scale=(0.3, 1.0)),
            A.HorizontalFlip(),
            A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
            A.Normalize(MEAN, STD),
            A.Erasing(scale=(0.02, 0.33), ratio=(0.3, 3.3), p=0.25),
        ]
    )
    pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]

    def run() -> Tensor:
        made = np.stack([chain(image=picture)["image"] for picture in pictures])
        return torch.from_numpy(made.transpose(0, 3, 1, 2))

    return run
