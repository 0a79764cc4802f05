"""AugMix."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.magnitude_ops import STEPS, Interpolation, MagnitudeOperation, MagnitudeRange, magnitudes
from augment.sometimes import Params

SPACE = (
    MagnitudeRange("ShearX", 0, 0.3, signed=True),
    MagnitudeRange("ShearY", 0, 0.3, signed=True),
    MagnitudeRange("TranslateX", 0, 1 / 3, signed=True, relative=True),
    MagnitudeRange("TranslateY", 0, 1 / 3, signed=True, relative=True),
    MagnitudeRange("Rotate", 0, 30, signed=True),
    MagnitudeRange("Posterize", 4, 0),
    MagnitudeRange("Solarize", 1, 0),
    MagnitudeRange("AutoContrast"),
    MagnitudeRange("Equalize"),
)
MORE = tuple(MagnitudeRange(step, 0, 0.9, signed=True) for step in ("Brightness", "Color", "Contrast", "Sharpness"))
BINS, LONGEST = 10, 3


class AugMix(MagnitudeOperation):
    """A weighted mean of the image and several short chains of steps: ``m x + (1 − m) Σ w_i chain_i(x)``.

    Hendrycks et al., "AugMix" (arXiv 1912.02781): w ~ Dirichlet(α, …, α), m ~ Beta(α, α). Ranges are torchvision's.

    Args:
        severity: 1 … 10, how many of the ten magnitudes are drawn from, the weakest first.
        width: how many chains.
        depth: steps in a chain; 0 draws 1, 2 or 3 for each.
        alpha: α, a whole number.
        all_ops: brightness, color, contrast and sharpness too. The paper leaves them out, because the corruptions of
            its test sets contain them; torchvision has them by default, as here.
        interpolation: how moved pixels are read: ``nearest`` or ``bilinear`` (as in the paper and torchvision).
        fill: value of the pixels outside the image, in [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("AugMix")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = AugMix(severity=5)
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.8040, 0.3990, 0.1941])
    """

    def __init__(
        self,
        severity: int = 3,
        width: int = 3,
        depth: int = 0,
        alpha: int = 1,
        all_ops: bool = True,
        interpolation: Interpolation = "bilinear",
        fill: float = 0.0,
    ):
        super().__init__(interpolation, fill)
        if not 1 <= severity <= BINS:
            raise ValueError(f"severity is in 1 … {BINS}, not {severity}")
        if width < 1:
            raise ValueError(f"width is a number of chains from 1, not {width}")
        if depth < 0:
            raise ValueError(f"depth is a number of steps, or 0 to draw it, not {depth}")
        if alpha < 1 or alpha != int(alpha):
            raise ValueError(f"alpha is a whole number from 1, not {alpha}")
        self.severity, self.width, self.depth, self.alpha = severity, width, depth, int(alpha)
        self.space = SPACE + MORE if all_ops else SPACE

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        """Steps [B, width · depth], chain after chain, and ``weight`` [B, 1 + width]: the image's, then the chains'."""
        depth = self.depth or LONGEST
        count = self.width * depth
        choice = draws.integers(0, 0, len(self.space), (count,))
        level = draws.integers(1, 0, self.severity, (count,)) / (BINS - 1)
        params = magnitudes(self.space, choice, level, draws.bernoulli(2, 0.5, (count,)), shape)
        if not self.depth:
            length = draws.integers(3, 1, LONGEST + 1, (self.width,)).repeat_interleave(depth, 1)
            idle = torch.arange(count, device=length.device) % depth >= length
            params["step"] = params["step"].masked_fill(idle, STEPS.index("Identity"))
        # A gamma variable of integer α is a sum of α exponential ones; normalized, they are Dirichlet distributed.
        exponential = -torch.log1p(-draws.uniform(4, (self.width + 2, self.alpha))).sum(2)
        kept, chains = exponential[:, :2], exponential[:, 2:]
        kept, chains = kept / kept.sum(1, keepdim=True), chains / chains.sum(1, keepdim=True)
        params["weight"] = torch.cat([kept[:, :1], kept[:, 1:] * chains], 1)
        return params

    def apply(self, images: Tensor, params: Params) -> Tensor:
        weight, *weights = map(by_sample, params["weight"].unbind(1))
        mixed = images * weight
        steps, magnitude = (params[name].unflatten(1, (self.width, -1)) for name in ("step", "magnitude"))
        for n, weight in enumerate(weights):
            chain = super().apply(images, {"step": steps[:, n], "magnitude": magnitude[:, n]})
            mixed.addcmul_(chain, weight)
        return mixed
