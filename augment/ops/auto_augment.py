"""AutoAugment."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from augment.draws import Draws
from augment.magnitude_ops import STEPS, Interpolation, MagnitudeOperation, MagnitudeRange, magnitudes
from augment.ops import rand_augment
from augment.sometimes import Params

Policy = Literal["imagenet", "cifar10", "svhn"]

# The paper's tables 7 to 9. A sub-policy per row: two steps, each with its probability and its magnitude, 0 … 9.
_SUB_POLICIES: dict[str, str] = {
    "imagenet": """
        Posterize 0.4 8, Rotate 0.6 9;         Solarize 0.6 5, AutoContrast 0.6;      Equalize 0.8, Equalize 0.6;
        Posterize 0.6 7, Posterize 0.6 6;      Equalize 0.4, Solarize 0.2 4;          Equalize 0.4, Rotate 0.8 8;
        Solarize 0.6 3, Equalize 0.6;          Posterize 0.8 5, Equalize 1;           Rotate 0.2 3, Solarize 0.6 8;
        Equalize 0.6, Posterize 0.4 6;         Rotate 0.8 8, Color 0.4 0;             Rotate 0.4 9, Equalize 0.6;
        Equalize 0, Equalize 0.8;              Invert 0.6, Equalize 1;                Color 0.6 4, Contrast 1 8;
        Rotate 0.8 8, Color 1 2;               Color 0.8 8, Solarize 0.8 7;           Sharpness 0.4 7, Invert 0.6;
        ShearX 0.6 5, Equalize 1;              Color 0.4 0, Equalize 0.6;             Equalize 0.4, Solarize 0.2 4;
        Solarize 0.6 5, AutoContrast 0.6;      Invert 0.6, Equalize 1;                Color 0.6 4, Contrast 1 8;
        Equalize 0.8, Equalize 0.6""",
    "cifar10": """
        Invert 0.1, Contrast 0.2 6;            Rotate 0.7 2, TranslateX 0.3 9;        Sharpness 0.8 1, Sharpness 0.9 3;
        ShearY 0.5 8, TranslateY 0.7 9;        AutoContrast 0.5, Equalize 0.9;        ShearY 0.2 7, Posterize 0.3 7;
        Color 0.4 3, Brightness 0.6 7;         Sharpness 0.3 9, Brightness 0.7 9;     Equalize 0.6, Equalize 0.5;
        Contrast 0.6 7, Sharpness 0.6 5;       Color 0.7 7, TranslateX 0.5 8;         Equalize 0.3, AutoContrast 0.4;
        TranslateY 0.4 3, Sharpness 0.2 6;     Brightness 0.9 6, Color 0.2 8;         Solarize 0.5 2, Invert 0;
        Equalize 0.2, AutoContrast 0.6;        Equalize 0.2, Equalize 0.6;            Color 0.9 9, Equalize 0.6;
        AutoContrast 0.8, Solarize 0.2 8;      Brightness 0.1 3, Color 0.7 0;         Solarize 0.4 5, AutoContrast 0.9;
        TranslateY 0.9 9, TranslateY 0.7 9;    AutoContrast 0.9, Solarize 0.8 3;      Equalize 0.8, Invert 0.1;
        TranslateY 0.7 9, AutoContrast 0.9""",
    "svhn": """
        ShearX 0.9 4, Invert 0.2;              ShearY 0.9 8, Invert 0.7;              Equalize 0.6, Solarize 0.6 6;
        Invert 0.9, Equalize 0.6;              Equalize 0.6, Rotate 0.9 3;            ShearX 0.9 4, AutoContrast 0.8;
        ShearY 0.9 8, Invert 0.4;              ShearY 0.9 5, Solarize 0.2 6;          Invert 0.9, AutoContrast 0.8;
        Equalize 0.6, Rotate 0.9 3;            ShearX 0.9 4, Solarize 0.3 3;          ShearY 0.8 8, Invert 0.7;
        Equalize 0.9, TranslateY 0.6 6;        Invert 0.9, Equalize 0.6;              Contrast 0.3 3, Rotate 0.8 4;
        Invert 0.8, TranslateY 0 2;            ShearY 0.7 6, Solarize 0.4 8;          Invert 0.6, Rotate 0.8 4;
        ShearY 0.3 7, TranslateX 0.9 3;        ShearX 0.1 6, Invert 0.6;              Solarize 0.7 2, TranslateY 0.6 7;
        ShearY 0.8 4, Invert 0.8;              ShearX 0.7 9, TranslateY 0.8 3;        ShearY 0.8 5, AutoContrast 0.7;
        ShearX 0.7 2, Invert 0.1""",
}

SPACE = (*(span for span in rand_augment.SPACE if span.step != "Identity"), MagnitudeRange("Invert"))
"""RandAugment's ranges, with Invert instead of Identity."""
_NAMES = [span.step for span in SPACE]
HIGHEST = 9


class AutoAugment(MagnitudeOperation):
    """One of 25 learned pairs of steps, each step with its own probability and magnitude.

    Cubuk et al., "AutoAugment" (arXiv 1805.09501), with the ranges of torchvision (whose Posterize keeps at least 4
    bits, and whose signed magnitudes are negative with probability 1/2).

    Args:
        policy: which data set the pairs were learned on: ``imagenet``, ``cifar10`` or ``svhn``.
        interpolation: how moved pixels are read: ``nearest`` (as in the paper and torchvision) or ``bilinear``.
        fill: value of the pixels outside the image, in [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([6])).op("AutoAugment")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = AutoAugment("svhn")
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.2000, 0.6000, 0.8000])
    """

    def __init__(self, policy: Policy = "imagenet", interpolation: Interpolation = "nearest", fill: float = 0.0):
        super().__init__(interpolation, fill)
        if policy not in get_args(Policy):
            raise ValueError(f"policy is one of {', '.join(get_args(Policy))}, not {policy!r}")
        self.policy = policy

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        choices, levels, chances = _pairs(self.policy, draws.ids.device)
        row = draws.integers(0, 0, len(choices))
        params = magnitudes(SPACE, choices[row], levels[row], draws.bernoulli(1, 0.5, (2,)), shape)
        idle = ~draws.bernoulli(2, chances[row], (2,))
        return {**params, "step": params["step"].masked_fill(idle, STEPS.index("Identity"))}


def sub_policies(policy: Policy) -> list[list[tuple[str, float, int]]]:
    """The pairs of a policy: (step, probability, magnitude), and magnitude 0 where the step has none."""
    policies = []
    for pair in _SUB_POLICIES[policy].split(";"):
        words = [part.split() for part in pair.split(",")]
        policies.append([(name, float(p), int(level[0]) if level else 0) for name, p, *level in words])
    return policies


@cache
def _pairs(policy: Policy, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """[25, 2] each: numbers of ``SPACE``, levels, probabilities. Cached: making a tensor on a GPU synchronizes."""
    pairs = sub_policies(policy)
    choices = torch.tensor([[_NAMES.index(name) for name, _, _ in pair] for pair in pairs], device=device)
    numbers = torch.tensor([[(level / HIGHEST, p) for _, p, level in pair] for pair in pairs], device=device)
    return choices, numbers[..., 0], numbers[..., 1]
