"""Maximum mean discrepancy between the pooled features of the two domains.

Shape suffixes: S source and T target samples of all ranks, N both, D pooled width.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import of_both

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


def squared_distances(x_ND: Tensor) -> Tensor:
    """Squared distances [N, N] of the rows, by products, so that no tensor [N, N, D] is made."""
    x_ND = x_ND - x_ND.detach().mean(0)  # of which the distances do not depend; products of centered rows lose less
    norms_N = x_ND.square().sum(1)
    return (norms_N[:, None] + norms_N[None] - 2 * x_ND @ x_ND.T).clamp(min=0)


def mmd(source_SD: Tensor, target_TD: Tensor, widths: tuple[float, ...] = WIDTHS) -> Tensor:
    """The unbiased estimate of MMD² with the mean of Gaussian kernels ``k(x, y) = exp(−‖x − y‖² / (2 σ²))``.

    ``L = mean_{i≠j} k(s_i, s_j) + mean_{i≠j} k(t_i, t_j) − 2 mean k(s_i, t_j)``; it can be slightly negative. σ² is
    each of ``widths`` times the mean squared distance of different samples, without gradient.

    Args:
        source_SD: features of the source domain, S ≥ 2.
        target_TD: features of the target domain, T ≥ 2.
        widths: of the kernels.

    Returns:
        A scalar with a graph.
    """
    both_ND, count = torch.cat([source_SD, target_TD]), len(source_SD)
    squares_NN = squared_distances(both_ND)
    size = len(both_ND)
    mean = squares_NN.detach().sum() / (size * (size - 1))
    kernel_NN = torch.stack([(-squares_NN / (2 * w * mean).clamp(min=1e-8)).exp() for w in widths]).mean(0)
    within = [kernel_NN[:count, :count], kernel_NN[count:, count:]]
    means = [(own.sum() - own.trace()) / (len(own) * (len(own) - 1)) for own in within]
    return means[0] + means[1] - 2 * kernel_NN[:count, count:].mean()


class MMD(Objective):
    """Maximum mean discrepancy of pooled features. See :func:`mmd`. Zero where a domain has less than two samples.

    Papers: Gretton et al., JMLR 2012; Long et al., DAN, ICML 2015, arXiv 1502.02791. Deviations: DAN weighs the
    kernels, aligns several layers, and estimates in linear time. The mean of the kernels is used, where their sum is
    common, whose loss is as many times larger as there are ``widths``: ``weight`` here does not depend on their number.

    Example:
        >>> import torch, distill
        >>> own = distill.create_objective("mmd")
        >>> features = distill.Features(pooled=torch.tensor([[0.0], [1.0], [0.0], [1.0]]))
        >>> batch = distill.Targets(labels=torch.tensor([0, 1, -1, -1]), domains=torch.tensor([0, 0, 1, 1]))
        >>> own(features, None, batch).item() < 0.5
        True
    """

    class Settings(Objective.Settings):
        type: Literal["mmd"] = "mmd"
        widths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
            WIDTHS, min_length=1, description="σ² of each kernel over the mean squared distance of the samples"
        )

    reads_teacher: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    domain: ClassVar[Literal["all", "target", "both"]] = "both"
    paper: ClassVar[str] = "Long et al., ICML 2015, arXiv 1502.02791"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        pooled_BD = field_of("student", student, "pooled")
        source_SD, target_TD = of_both(pooled_BD, batch, "mmd")
        if min(len(source_SD), len(target_TD)) < 2:
            return pooled_BD.sum() * 0
        return mmd(source_SD, target_TD, self.settings.widths)
