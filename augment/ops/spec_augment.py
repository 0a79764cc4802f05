"""Masks over time and frequency."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.sometimes import Params, PerSampleChange


class SpecAugment(PerSampleChange):
    """Masks bands of frequencies and spans of time in spectrograms [B, C, F, T].

    Park et al., "SpecAugment" (arXiv 1904.08779): with mask width w uniform in 0 … the parameter, and the start uniform
    in 0 … size − w. The defaults are the paper's policy LD. Its time warp is left out: the paper finds that it helps
    least and costs most.

    Args:
        frequency_masks: how many bands.
        frequency_width: a band's largest width, in bins.
        time_masks: how many spans.
        time_width: a span's largest width, in frames.
        time_part: no span is longer than this fraction of the spectrogram (the paper's p; 0.2 in its policy for
            Switchboard).
        fill: a value (0 is the mean of normalized spectrograms), or ``mean``, each spectrogram's own.
        p: probability for a sample.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("SpecAugment")
        >>> images = torch.ones(1, 1, 3, 6)
        >>> op = SpecAugment(frequency_masks=1, frequency_width=2, time_masks=1, time_width=2)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[1., 0., 0., 1., 1., 1.],
                [1., 0., 0., 1., 1., 1.],
                [0., 0., 0., 0., 0., 0.]])
    """

    def __init__(
        self,
        frequency_masks: int = 2,
        frequency_width: int = 27,
        time_masks: int = 2,
        time_width: int = 100,
        time_part: float = 1.0,
        fill: float | Literal["mean"] = 0.0,
        p: float = 1.0,
    ):
        super().__init__(p)
        for name, value in (("frequency_masks", frequency_masks), ("time_masks", time_masks)):
            if value < 0:
                raise ValueError(f"{name} is a number of masks from 0, not {value}")
        for name, value in (("frequency_width", frequency_width), ("time_width", time_width)):
            if value < 0:
                raise ValueError(f"{name} is a width from 0, not {value}")
        if not 0 < time_part <= 1:
            raise ValueError(f"time_part is above 0 and up to 1, not {time_part}")
        if isinstance(fill, str) and fill != "mean":
            raise ValueError(f"fill is a number or 'mean', not {fill!r}")
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width
        self.time_masks, self.time_width, self.time_part = time_masks, time_width, time_part
        self.fill = fill

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """First bin and width of every band ``frequencies`` [B, n, 2], and of every span ``times`` [B, n, 2]."""
        bins, frames = shape[2:]
        longest = min(self.time_width, int(self.time_part * frames))
        return {
            "frequencies": _spans(draws, 1, self.frequency_masks, min(self.frequency_width, bins), bins),
            "times": _spans(draws, 3, self.time_masks, longest, frames),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        blank = _covered(params["frequencies"], images.shape[2])[:, None, :, None]
        blank = blank | _covered(params["times"], images.shape[3])[:, None, None, :]
        if self.fill != "mean":
            return images.masked_fill(blank, float(self.fill))
        return torch.where(blank, by_sample(images.flatten(1).mean(1)), images)


def _spans(draws: Draws, slot: int, count: int, longest: int, size: int) -> Tensor:
    width = draws.integers(slot, 0, longest + 1, (count,))
    start = (draws.uniform(slot + 1, (count,)) * (size - width + 1)).floor().long()
    return torch.stack([start, width], -1)


def _covered(spans: Tensor, size: int) -> Tensor:
    """[B, size] bool: whether any of the spans [B, n, 2] covers a position."""
    position = torch.arange(size, device=spans.device)
    start, width = spans[..., :1], spans[..., 1:]
    return ((position >= start) & (position < start + width)).any(1)
