"""SimCLR: contrasts two views of an image with all other images of the batch; needs no teacher and no labels.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import FeatureShapes
from distill.objectives.compare import same_shape
from distill.objectives.projected_views import ProjectedViewsObjective
from distill.objectives.projector import CarrySettings, mlp
from distill.objectives.ranks import gather_batch, rank


def nt_xent(first_BP: Tensor, second_BP: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent, the normalized, temperature-scaled cross-entropy, for the samples of the first view.

    ``L = −log exp(u_i · v_i / τ) / (Σ_j exp(u_i · v_j / τ) + Σ_{j ≠ i} exp(u_i · u_j / τ))``, mean over the batch, with
    unit vectors u of the first and v of the second view, and j over the batch of all ranks. A batch of one has no
    negatives: its loss is zero, with a graph.

    Args:
        first_BP: projected features of the first view.
        second_BP: those of the second view of the same images.
        temperature: τ.

    Returns:
        A scalar with a graph to both views.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("projected features", first_BP, second_BP)
    first_BP, second_BP = F.normalize(first_BP.float()), F.normalize(second_BP.float())
    own_B = rank() * len(first_BP) + torch.arange(len(first_BP), device=first_BP.device)
    across_BG = first_BP @ gather_batch(second_BP).T / temperature
    within_BG = first_BP @ gather_batch(first_BP).T / temperature
    within_BG = within_BG.scatter(1, own_B[:, None], -torch.inf)
    return F.cross_entropy(torch.cat([across_BG, within_BG], dim=1), own_B)


class SimCLR(ProjectedViewsObjective):
    """SimCLR on projected pooled features: the mean of :func:`nt_xent` over all ordered pairs of student views.

    The projector is ``Linear(hidden) – ReLU – Linear(dim)``.

    Paper: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020, arXiv
    2002.05709. τ, ``hidden`` and a projector without batch norm as in CaSSLe's recipe for CIFAR (arXiv 2112.04215).

    Deviation: with more than two views (``multicrop``), each pair of views is a loss of its own.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> simclr = distill.create_objective("simclr", student=FeatureShapes(2, pooled=8), hidden=4, dim=4)
        >>> views = [distill.Features(pooled=torch.ones(1, 8)), distill.Features(pooled=torch.zeros(1, 8))]
        >>> simclr(views, None, distill.Targets(labels=torch.tensor([0]))).item()  # a batch of one has no negatives
        0.0
    """

    class Settings(CarrySettings):
        type: Literal["simclr"] = "simclr"
        hidden: int = Field(2048, gt=0, description="width of the projector's hidden layer")
        dim: int = Field(128, gt=0, description="width of the projected features")
        temperature: float = Field(0.2, gt=0, description="τ")

    ordered: ClassVar[bool] = True
    paper: ClassVar[str] = "Chen et al., ICML 2020, arXiv 2002.05709"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.projector = mlp([student.pooled, settings.hidden, settings.dim], batch_norm=False)

    def loss_of_pair(self, first_BP: Tensor, second_BP: Tensor) -> Tensor:
        return nt_xent(first_BP, second_BP, self.settings.temperature)
