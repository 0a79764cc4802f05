"""CaSSLe: a predictor maps the student's features to the old model's for the same view, with a self-supervised loss.

Shape suffixes: B batch of this rank, G batch of all ranks, V views, D pooled width, P projected width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from augment.policy import PairKind
from distill.models.features import Features, FeatureShapes
from distill.objectives.barlow_twins import cross_correlation
from distill.objectives.base import Objective, Targets
from distill.objectives.byol import byol
from distill.objectives.compare import require_teacher, same_shape
from distill.objectives.projector import Following, Projecting, mlp
from distill.objectives.ranks import gather_batch, rank
from distill.objectives.views import ViewsObjective, matched_fields_of_pairs

Distance = Literal["contrastive", "predictive", "decorrelative", "mse"]


def cassle(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], distance: Distance, temperature: float = 0.2
) -> Tensor:
    """How far predictions are from the old model's features, by a distance that is a self-supervised loss.

    - ``contrastive`` (SimCLR, MoCo): cross-entropy of ``p_i · z̄_j / τ`` over all samples j and all views with the
      sample's own view as the target, and that of ``z̄_i · p_j / τ``; the mean of both. p and z̄ are unit vectors, and a
      sample's other view is a negative;
    - ``predictive`` (BYOL): ``2 − 2 cos(p, z̄)``, mean over views, see :func:`distill.objectives.byol.byol`;
    - ``decorrelative`` (Barlow Twins): 0.1 times :func:`distill.objectives.barlow_twins.cross_correlation` of p and z̄,
      mean over views;
    - ``mse`` (VICReg, its invariance term): mean of (p − z̄)².

    Args:
        predictions: p, [B, P] for each view.
        targets: z̄, [B, P] for each view, the old model's for the same images; no gradient flows into them.
        distance: which of the four.
        temperature: τ of the contrastive distance.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    predictions, targets = [p.float() for p in predictions], [z.detach().float() for z in targets]
    for p_BP, z_BP in zip(predictions, targets, strict=True):
        same_shape("projected features", p_BP, z_BP)
    if distance == "contrastive":
        return (_info_nce(predictions, targets, temperature) + _info_nce(targets, predictions, temperature)) / 2
    of_views = []
    for p_BP, z_BP in zip(predictions, targets):
        if distance == "predictive":
            of_views.append(byol(p_BP, z_BP))
        elif distance == "decorrelative":
            of_views.append(0.1 * cross_correlation(p_BP, z_BP))
        else:
            of_views.append(F.mse_loss(p_BP, z_BP))
    return torch.stack(of_views).mean()


def _info_nce(rows: Sequence[Tensor], columns: Sequence[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of the similarities of the rows of all views to the columns of all views and ranks."""
    all_columns = torch.cat([gather_batch(F.normalize(view_BP)) for view_BP in columns])
    batch, losses = len(rows[0]), []
    whole = len(all_columns) // len(columns)
    for v, view_BP in enumerate(rows):
        own_B = v * whole + rank() * batch + torch.arange(batch, device=view_BP.device)
        losses.append(F.cross_entropy(F.normalize(view_BP) @ all_columns.T / temperature, own_B))
    return torch.stack(losses).mean()


class CaSSLe(ViewsObjective):
    """CaSSLe: distillation from the old model on the same view, through a predictor. See :func:`cassle`.

    With z the student's features and z̄ those of the old model, the teacher, ``p = g(z)``, where the predictor g is
    ``Linear(hidden) – BN – ReLU – Linear``. ``projector: simclr`` (any self-supervised objective of the same loss)
    compares projected features, as the paper does: z with that objective's projector, z̄ with the copy of it at the
    start of this fit, which is the old model's if the objective has ``carry: stream``. Without it, pooled features are
    compared. The predictor is new in every fit.

    Paper: Fini et al., Self-Supervised Models are Continual Learners, CVPR 2022, arXiv 2112.04215: hidden 2048, τ 0.2,
    weight 1, and 25 for ``mse``. The distance should be that of the objective: contrastive for SimCLR and MoCo,
    predictive for BYOL, decorrelative for Barlow Twins, mse for VICReg.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> shapes, contrastive = FeatureShapes(2, pooled=8), {"hidden": 4, "distance": "contrastive"}
        >>> cassle = distill.create_objective("cassle", student=shapes, teacher=shapes, **contrastive)
        >>> student, old = ([distill.Features(pooled=torch.ones(1, 8))] for _ in range(2))
        >>> cassle(student, old, distill.Targets(labels=torch.tensor([0]))).item()  # one sample, one view: no negatives
        0.0
    """

    class Settings(Objective.Settings):
        type: Literal["cassle"] = "cassle"
        distance: Distance = Field("predictive", description="between predictions and the old model's features")
        projector: str | None = Field(
            None, description="name of the self-supervised objective whose projector is used; none: pooled features"
        )
        hidden: int = Field(2048, gt=0, description="width of the predictor's hidden layer")
        temperature: float = Field(0.2, gt=0, description="τ of the contrastive distance")

    view_pairs: ClassVar[PairKind] = "same"
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Fini et al., CVPR 2022, arXiv 2112.04215"

    settings: Settings
    old_projector: Following

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        width = require_teacher(teacher).pooled
        self._projector: tuple[nn.Module, ...] = ()  # in a tuple, since it is registered in the other objective
        self._widths = student.pooled, width
        if settings.projector is None:
            self.predictor = mlp([student.pooled, settings.hidden, width])

    def connect(self, others: Mapping[str, Objective]) -> None:
        """Take the projector of the objective that ``projector`` names, and a copy of it for the old model."""
        name = self.settings.projector
        if name is None:
            return
        other = others.get(name)
        if not isinstance(other, Projecting):
            known = [key for key, objective in others.items() if isinstance(objective, Projecting)]
            text = f"it is not among the objectives with a projector: {', '.join(known) or 'there are none'}"
            raise ValueError(f"cassle.projector: {name}: {text}")
        if self._widths[0] != self._widths[1]:
            text = f"the student's pooled width is {self._widths[0]}, the old model's {self._widths[1]}"
            raise ValueError(f"cassle.projector: {name} projects the features of both, but {text}")
        dim = other.projector[-1].out_features  # type: ignore[index]
        self._projector = (other.projector,)
        self.old_projector = Following(other.projector)
        self.predictor = mlp([dim, self.settings.hidden, dim])

    def loss_of_views(self, student: Sequence[Features], teacher: Sequence[Features] | None, batch: Targets) -> Tensor:
        own, old = matched_fields_of_pairs(student, teacher, "pooled")
        if self.settings.projector is not None:
            if not self._projector:
                raise ValueError("cassle.projector names another objective of the same loss; see create_step")
            [projector] = self._projector
            own, old = [projector(z) for z in own], [self.old_projector(projector, z) for z in old]
        predictions = [self.predictor(z) for z in own]
        return cassle(predictions, old, self.settings.distance, self.settings.temperature)
