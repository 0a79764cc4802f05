"""FourierSwap."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.ops.fourier_mask import distance
from augment.sometimes import Params, PerSampleChange, Range, between, limits


class FourierSwap(PerSampleChange):
    """Gives an image some of the amplitudes of another: ``F⁻¹(((1 − λ) |F(x)| + λ |F(partner)|) · e^{i arg F(x)})``.

    Amplitudes carry colors and texture, phases the shapes. With ``band`` 1 and λ drawn from [0, 1] it is the amplitude
    mix of Xu et al., "A Fourier-based framework for domain generalization" (arXiv 2105.11120); with λ = 1 and a small
    band the swap of Yang & Soatto, "FDA" (arXiv 2004.05498; their β = 0.01 … 0.09 is about half of ``band``).

    Args:
        amount: λ; a number, or [lowest, highest] to draw between for every sample.
        band: frequencies up to this distance from 0 are mixed; 1 is the finest along an axis, 1.42 includes all.
        p: probability for a sample.

    The only operation here that depends on the batch: the partner is the sample of the batch with the next larger draw
    (after the largest, the smallest). A sample alone stays as it is. The result is clipped to [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7, 8])).op("FourierSwap")
        >>> images = torch.tensor([[0.0, 0.5, 1.0], [0.4, 0.4, 0.4]]).view(2, 1, 1, 3)
        >>> op = FourierSwap(amount=1.0, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape))[:, 0, 0]
        tensor([[0.4000, 0.4000, 0.4000],
                [0.5000, 0.5000, 0.5000]])
    """

    mixes_samples = True

    def __init__(self, amount: Range = (0.0, 1.0), band: float = 1.42, p: float = 0.5):
        super().__init__(p)
        self.amount = limits("amount", amount, 0, 1)
        if not band > 0:
            raise ValueError(f"band is a distance from frequency 0, above 0, not {band}")
        self.band = float(band)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """``partner`` [B]: the row of the batch whose amplitudes are mixed in."""
        order = draws.bits(2).argsort(stable=True)
        partner = torch.empty_like(order).scatter_(0, order, order.roll(-1))
        return {"amount": between(draws, 1, self.amount), "partner": partner}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        # Partners are looked up in the whole batch; ``change`` gets only the drawn samples.
        return super().apply(images, {**params, "partners": images[params["partner"]]}) if len(images) else images

    def change(self, images: Tensor, params: Params) -> Tensor:
        height, width = images.shape[2:]
        taking = by_sample(params["amount"]) * (distance(height, width, images.device) <= self.band)
        own = torch.fft.rfft2(images)
        partners = torch.fft.rfft2(params["partners"]).abs()
        # A frequency that the image lacks has no phase, and stays 0.
        change = partners.div_(own.abs().clamp_(min=1e-12)).sub_(1).mul_(taking).add_(1)
        return torch.fft.irfft2(own.mul_(change), s=(height, width)).clamp_(0, 1)
