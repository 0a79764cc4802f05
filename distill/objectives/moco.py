"""MoCo v2+: contrasts a view with the momentum network's key of another view and a queue of past keys; no labels.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width, Q length of the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from augment.policy import PairKind
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.compare import same_shape
from distill.objectives.projector import CarrySettings, Following, Projecting, mlp
from distill.objectives.queue import push
from distill.objectives.ranks import gather_batch
from distill.objectives.views import ViewsObjective, matched_fields_of_pairs


def moco(query_BP: Tensor, key_BP: Tensor, queue_QP: Tensor, temperature: float = 0.2) -> Tensor:
    """``L = −log exp(q · k / τ) / (exp(q · k / τ) + Σ_m exp(q · m / τ))``, mean over the batch; m: the queue's rows.

    Args:
        query_BP: q, projected features of the student; normalized here.
        key_BP: k, projected features of the momentum network for the same images; no gradient flows into them.
        queue_QP: unit vectors, keys of other images.
        temperature: τ.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("projected features", query_BP, key_BP)
    query_BP, key_BP = F.normalize(query_BP.float()), F.normalize(key_BP.detach().float())
    positive_B1 = (query_BP * key_BP).sum(1, keepdim=True)
    logits = torch.cat([positive_B1, query_BP @ queue_QP.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


class MoCo(Projecting, ViewsObjective):
    """MoCo v2+ on pooled features of the student and of the momentum network, for different views. See :func:`moco`.

    The projector is ``Linear(hidden) – ReLU – Linear(dim)``, the momentum network's an exponential moving average of
    it, with the network's decay. The queue starts with random unit vectors; after the loss, the keys of a batch of all
    ranks replace its oldest rows. "+" is the loss in both directions (``augment.policy: both_to_both``).

    Papers: He et al., Momentum Contrast, CVPR 2020, arXiv 1911.05722; Chen et al., 2020, arXiv 2003.04297 (projector,
    τ 0.2, queue 65,536). CaSSLe's recipe for CIFAR (arXiv 2112.04215) has a queue of 32,768 and a decay of 0.99 to
    0.999.

    Deviations: one queue for the keys of both views, where solo-learn has one for each; no shuffling of batches over
    ranks, since batch norms of the student are those of a rank.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> moco = distill.create_objective("moco", student=FeatureShapes(2, pooled=8), hidden=4, dim=4, queue=6)
        >>> student, momentum = ([distill.Features(pooled=torch.randn(2, 8)) for _ in range(2)] for _ in range(2))
        >>> loss = moco(student, momentum, distill.Targets(labels=torch.tensor([0, 1])))
        >>> moco.queue.shape, moco.pushed.item()  # a key of each of two images, for each of two pairs of views
        (torch.Size([6, 4]), 4)
    """

    class Settings(CarrySettings):
        type: Literal["moco"] = "moco"
        hidden: int = Field(2048, gt=0, description="width of the projector's hidden layer")
        dim: int = Field(128, gt=0, description="width of the projected features")
        temperature: float = Field(0.2, gt=0, description="τ")
        queue: int = Field(32768, gt=0, description="number of keys in the queue")

    reads_momentum: ClassVar[bool] = True
    view_pairs: ClassVar[PairKind] = "cross"
    paper: ClassVar[str] = "He et al., CVPR 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297"

    settings: Settings
    queue: Tensor
    pushed: Tensor

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.projector = mlp([student.pooled, settings.hidden, settings.dim], batch_norm=False)
        self.target_projector = Following(self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(settings.queue, settings.dim)))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def loss_of_views(self, student: Sequence[Features], teacher: Sequence[Features] | None, batch: Targets) -> Tensor:
        queries, keys = matched_fields_of_pairs(student, teacher, "pooled")
        keys = [F.normalize(self.target_projector(self.projector, key_BD)) for key_BD in keys]
        queue_QP = self.queue.clone()  # the keys are pushed before the backward pass, which reads the rows of now
        losses = [
            moco(self.projector(query_BD), key_BP, queue_QP, self.settings.temperature)
            for query_BD, key_BP in zip(queries, keys, strict=True)
        ]
        for key_BP in keys:
            push(self.queue, self.pushed, gather_batch(key_BP))
        return torch.stack(losses).mean()

    def follow(self, decay: float) -> None:
        self.target_projector.follow(self.projector, decay)
