"""Mixup and cutmix: drawn once for a batch, applied to every view, with the exact weight of each view.

With λ ~ Beta(α, α) and a partner for every sample::

    mixup    x' = λ x + (1 − λ) x[partner]                                  arXiv 1710.09412
    cutmix   x' = x outside a box of area 1 − λ, x[partner] inside it       arXiv 1905.04899

The box has the views' proportions, a uniform center, and is clipped at the border, as in the paper; it has the same
relative position in every view. Its fraction of a view's pixels, counted after rounding and clipping, is that view's 1
− λ.

The draws depend on the *set* of samples in a batch, not on their order. The partner is the sample with the next larger
draw (after the largest, the smallest), which is another sample if the batch has one. So mixing depends on the batch.
timm pairs sample b with sample B − 1 − b instead.

Views are mixed after normalization. The result is the same as before it, because both are affine in the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from augment.draws import Draws
from augment.policy import MixSettings
from augment.views import Mix, Views


@dataclass(frozen=True)
class _Plan:
    """What was drawn for a batch: λ, and for cutmix the center of the box as (y, x) in [0, 1)."""

    lam: float
    center: tuple[float, float] | None


def mixed(views: Views, settings: MixSettings, seed: int, epoch: int, ids: Tensor) -> Views:
    """The views of a batch, mixed if the draws decide so; ``views.mix`` holds partners and weights.

    Args:
        views: normalized views, all of the same B samples.
        settings: which kinds, how often, how strongly.
        seed: the run's seed.
        epoch: number of the epoch.
        ids: [B] int64 sample ids on the CPU, in the order of the views.

    Returns:
        The mixed views with ``mix`` filled in, or ``views`` unchanged where the draws decide against mixing.
    """
    plan = _draw(settings, Draws(seed, epoch, "mix", ids.sum()[None]))
    if plan is None or len(ids) < 2:
        return views
    order = Draws(seed, epoch, "mix partner", ids).bits(0).argsort(stable=True)
    partner = torch.empty_like(order).scatter_(0, order, order.roll(-1))
    rows = partner.to(next(chain(views.student, *views.teacher)).device, non_blocking=True)
    done: dict[int, tuple[Tensor, float]] = {}

    def mix(view: Tensor) -> tuple[Tensor, float]:
        if id(view) not in done:  # networks may share a view
            done[id(view)] = _mixup(view, rows, plan.lam) if plan.center is None else _cutmix(view, rows, plan)
        return done[id(view)]

    teacher = [[mix(view) for view in network] for network in views.teacher]
    student = [mix(view) for view in views.student]
    return replace(
        views,
        teacher=tuple(tuple(view for view, _ in network) for network in teacher),
        student=tuple(view for view, _ in student),
        mix=Mix(rows, tuple(tuple(share for _, share in network) for network in teacher), tuple(s for _, s in student)),
    )


def _draw(settings: MixSettings, draws: Draws) -> _Plan | None:
    happens, kind, level, y, x = draws.uniform(0, (5,), torch.float64)[0].tolist()
    if happens >= settings.p:
        return None
    cut = settings.mixup == 0 or (settings.cutmix > 0 and kind < settings.switch_p)
    from scipy.special import betaincinv  # takes a quarter of a second to import

    alpha = settings.cutmix if cut else settings.mixup
    lam = float(betaincinv(alpha, alpha, level))
    return _Plan(lam, (y, x) if cut else None)


def _mixup(view: Tensor, partner: Tensor, lam: float) -> tuple[Tensor, float]:
    return view[partner].lerp_(view, lam), lam


def _cutmix(view: Tensor, partner: Tensor, plan: _Plan) -> tuple[Tensor, float]:
    assert plan.center is not None
    height, width = view.shape[-2:]
    (top, bottom), (left, right) = (
        _span(center, side, (1 - plan.lam) ** 0.5) for center, side in zip(plan.center, (height, width))
    )
    result = view.clone()
    result[..., top:bottom, left:right] = view[..., top:bottom, left:right][partner]
    return result, 1 - (bottom - top) * (right - left) / (height * width)


def _span(center: float, side: int, part: float) -> tuple[int, int]:
    """First and past-the-last pixel of ``part`` of a side around a center in [0, 1), clipped at the border."""
    length, middle = int(side * part), int(center * side)
    return max(0, middle - length // 2), min(side, middle - length // 2 + length)
