"""Reptile: a start of deltas from which tasks of few images are learned well.

``θ ← θ + ε (θ_k − θ)``, θ_k the deltas after the training of a task from θ, or their mean over several tasks. Since θ_k
was trained from θ, the factors of low-rank deltas stay close to each other, so that their mean is a delta too.

Paper: Nichol et al., On First-Order Meta-Learning Algorithms, arXiv 1803.02999.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def reptile(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
    """One step of Reptile.

    Args:
        start: θ, name → tensor.
        trained: θ_k, tensors of the same names and shapes.
        step: ε; 1 gives θ_k.

    Returns:
        The new θ; integer tensors are those of ``trained``.

    Example:
        >>> import torch
        >>> from distill.training.reptile import reptile
        >>> reptile({"A": torch.tensor([1.0, 3.0])}, {"A": torch.tensor([5.0, 3.0])}, step=0.25)
        {'A': tensor([2., 3.])}
    """
    return {
        name: start[name].lerp(value, step) if value.is_floating_point() else value for name, value in trained.items()
    }
