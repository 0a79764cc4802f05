"""FourierMask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.sometimes import Params, PerSampleChange, Range, between, limits, noise_seed, uniform_noise


class FourierMask(PerSampleChange):
    """Sets the amplitude of randomly chosen frequencies to 0: ``F⁻¹(M · F(x))``, the phase of the others unchanged.

    Every frequency of the band is left out with the sample's own probability, in all channels together; the mean of an
    image (frequency 0) always stays. Similar masks are those of Xie et al., "Masked frequency modeling"
    (arXiv 2206.07706), whose bands are whole discs.

    Args:
        ratio: the probability; a number, or [lowest, highest] to draw between for every sample.
        band: [lowest, highest] distance from frequency 0; 1 is the finest frequency along an axis, √2 the corner.
        p: probability for a sample.

    The result is clipped to [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("FourierMask")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = FourierMask(ratio=1.0, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4000, 0.4000, 0.4000])
    """

    def __init__(self, ratio: Range = (0.1, 0.5), band: tuple[float, float] = (0.0, math.sqrt(2)), p: float = 0.5):
        super().__init__(p)
        self.ratio = limits("ratio", ratio, 0, 1)
        self.band = limits("band", band, 0)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        return {"ratio": between(draws, 1, self.ratio), "noise": noise_seed(draws, 2)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        height, width = images.shape[2:]
        level = uniform_noise(params["noise"], (1, height, width // 2 + 1))
        kept = _paired(level, width) >= by_sample(params["ratio"])
        away = distance(height, width, images.device)
        low, high = self.band
        kept |= (away < low) | (away > high) | (away == 0)
        spectrum = torch.fft.rfft2(images).mul_(kept)
        return torch.fft.irfft2(spectrum, s=(height, width)).clamp_(0, 1)


def distance(height: int, width: int, device: torch.device) -> Tensor:
    """Distance of each frequency of ``rfft2`` from frequency 0.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        device: of the result.

    Returns:
        [H, W // 2 + 1]; 1 is the finest frequency along an axis.
    """
    y = torch.fft.fftfreq(height, 0.5, device=device)
    x = torch.fft.rfftfreq(width, 0.5, device=device)
    return (y[:, None].square() + x.square()).sqrt_()


def _paired(level: Tensor, width: int) -> Tensor:
    """Frequencies k and −k of a real image have the same amplitude: where rfft2 lists both, they get the same value."""
    row = torch.arange(level.shape[2], device=level.device)
    row = torch.minimum(row, level.shape[2] - row)
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        level[..., column] = level[..., row, column]
    return level
