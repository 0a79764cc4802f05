"""JPEG compression."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.sometimes import Params, PerSampleChange, Range, between, limits

# ITU-T T.81, annex K: the quantization step of each frequency of an 8 x 8 block at quality 50.
_LUMA = """16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99"""


class JPEG(PerSampleChange):
    """JPEG compression: 8 × 8 blocks, colors at half the resolution (4:2:0), libjpeg's tables.

    Args:
        quality: 1 … 100; a number, or [lowest, highest] to draw a whole number from, uniformly.
        p: probability for a sample.

    The result differs from a file written and read by PIL by about one of 255 levels in the mean, as libjpeg rounds
    more often. kornia's RandomJPEG uses a differentiable rounding and takes many times as long. Images have 1 or 3
    channels.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("JPEG")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = JPEG(quality=10, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.2510, 0.3843, 0.5490])
    """

    def __init__(self, quality: Range = (30, 90), p: float = 0.5):
        super().__init__(p)
        self.quality = limits("quality", quality, 1, 100)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        if shape[1] not in (1, 3):
            raise self.refuse(f"images have 1 or 3 channels, not {shape[1]}")
        low, high = self.quality
        return {"quality": (between(draws, 1, (low, high + 1)).floor()).clamp_(max=high)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        return jpeg(images, params["quality"])


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Images [B, 1 or 3, H, W] in [0, 1] after compression at ``quality`` [B], 1 … 100."""
    height, width = images.shape[2:]
    color = images.shape[1] == 3
    unit = 16 if color else 8
    # The image is padded to whole blocks with its last pixels.
    x = F.pad(images.mul(255).round_(), [0, -width % unit, 0, -height % unit], mode="replicate")
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor_()
    if not color:
        luma = _coded(x, scale, _LUMA)
    else:
        luma, blue, red = _to_ycc(x)
        half = F.avg_pool2d(torch.cat([blue, red], 1), 2).round_()
        half = _coded(half, scale, _CHROMA)
        blue, red = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False).sub_(128).split(1, 1)
        luma = _coded(luma, scale, _LUMA)
        luma = torch.cat([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 1)
    return luma[..., :height, :width].round().clamp_(0, 255).mul_(1 / 255)


def _to_ycc(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    red, green, blue = x.split(1, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma.round(), ((blue - luma) / 1.772 + 128).round_(), ((red - luma) / 1.402 + 128).round_()


def _coded(planes: Tensor, scale: Tensor, table: str) -> Tensor:
    """Planes [B, C, H, W] in 0 … 255, transformed by blocks, rounded to multiples of the table, transformed back."""
    transform, base = _cosines(planes.device), _table(table, planes.device)
    step = (base * by_sample(scale)).add_(50).div_(100).floor_().clamp_(1, 255)[:, :, :, None]
    (batch, channels, height, width) = planes.shape
    block = (planes - 128).view(batch, channels * height // 8, 8, width // 8, 8)
    block = block.transpose(2, 3)
    # [B, rows, cols, 8, 8]
    step = step.view(batch, 1, 1, 8, 8)
    coefficients = transform @ block @ transform.T
    coefficients.div_(step).round_().mul_(step)
    return (
        (transform.T @ coefficients @ transform).transpose(2, 3).reshape(planes.shape).add_(128).round_().clamp_(0, 255)
    )


@lru_cache(maxsize=8)
def _cosines(device: torch.device) -> Tensor:
    """[8, 8]: the orthonormal discrete cosine transform."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    transform = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    transform[0] /= math.sqrt(2)
    return transform.to(device)


@lru_cache(maxsize=8)
def _table(text: str, device: torch.device) -> Tensor:
    return torch.tensor([float(number) for number in text.split()], device=device).view(8, 8)
