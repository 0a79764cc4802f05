"""Scores of predictions that need no label, and warnings about predictions that run away from the source's classes.

The scores are for the report. No choice of a run depends on them: over four shifts and five variants of one network,
the entropy, information maximization and BNM each preferred the worst variant in two, and SND the unadapted one in all.

Shape suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RUNS_AWAY = 3.0
"""A class is said to run away if it is predicted this many times as often as the source has it."""
LEAST = 0.05
"""Smallest share of the predictions of a class that runs away."""
RARE = 0.1
"""A class counts as lost if it is predicted less than this fraction of its share in the source."""


def scores(logits_NK: Tensor) -> dict[str, float]:
    """Scores of the predictions for N unlabeled images.

    - ``entropy``: mean entropy of a prediction in nats; lower is surer;
    - ``information``: entropy of the mean prediction minus ``entropy`` (IM, arXiv 2002.08546); higher is better;
    - ``nuclear_norm``: ``‖P‖_* / N`` (BNM, arXiv 2003.12237); higher is better;
    - ``neighborhood``: soft neighborhood density (SND, arXiv 2108.10860), the mean entropy of the softmax of each
      image's similarities with the others, temperature 0.05; higher is better; 0 for a single image.

    Args:
        logits_NK: N ≥ 1.

    Returns:
        Name → score.
    """
    p_NK = logits_NK.double().softmax(1)
    entropy = float(_entropy(p_NK).mean())
    unit_NK = F.normalize(p_NK, dim=1)
    similar_NN = unit_NK @ unit_NK.T / 0.05
    similar_NN.fill_diagonal_(-torch.inf)
    neighborhood = float(_entropy(similar_NN.softmax(1)).mean()) if len(p_NK) > 1 else 0.0
    return {
        "entropy": entropy,
        "information": float(_entropy(p_NK.mean(0, keepdim=True))[0]) - entropy,
        "nuclear_norm": float(torch.linalg.svdvals(p_NK).sum()) / len(p_NK),
        "neighborhood": neighborhood,
    }


def class_fractions(logits_NK: Tensor) -> Tensor:
    """[K] fraction of the images for which each class is predicted."""
    return logits_NK.argmax(1).bincount(minlength=logits_NK.shape[1]).double() / len(logits_NK)


def warnings_about(name: str, fractions_K: Tensor, source_K: Tensor | None, classes: Sequence[str]) -> list[str]:
    """Lines about predictions of the target domain that have collapsed or run away.

    A class runs away if it has more than 3 times its share in the source, and at least 5 % of the predictions. The
    predictions have collapsed if half of the classes or more are lost. The target's true shares may differ, so a line
    is a reason to look, not an error.

    Args:
        name: of the model.
        fractions_K: of the predicted classes, see :func:`class_fractions`.
        source_K: shares of the classes in the source's labels; None: equal ones.
        classes: their names.

    Returns:
        The lines; empty if there is nothing to tell.
    """
    count = len(fractions_K)
    expected_K = torch.full_like(fractions_K, 1 / count) if source_K is None else source_K.to(fractions_K)
    names = list(classes) or [str(number) for number in range(count)]
    lines = []
    for k in (fractions_K > (RUNS_AWAY * expected_K).clamp(min=LEAST)).nonzero()[:, 0].tolist():
        known = source_K is not None
        share = f"which has {expected_K[k]:.0%} of the source" if known else f"{expected_K[k]:.0%} in equal shares"
        lines.append(
            f"{name}: {fractions_K[k]:.0%} of the target images are predicted as {names[k]!r}, {share}: "
            "the class may have run away"
        )
    lost = [names[k] for k in range(count) if expected_K[k] > 0 and fractions_K[k] < RARE * expected_K[k]]
    if len(lost) * 2 >= count:
        shown = ", ".join(lost[:5]) + (" …" if len(lost) > 5 else "")
        lines.append(f"{name}: {len(lost)} of {count} classes are hardly predicted on the target ({shown}): collapsed")
    return lines


def _entropy(p_NK: Tensor) -> Tensor:
    return -torch.special.xlogy(p_NK, p_NK).sum(1)
