"""Relational representation distillation: similarities to a queue of past samples match the teacher's.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width, Q length of the queue.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher, same_shape
from distill.objectives.queue import push
from distill.objectives.ranks import gather_batch, weighed


def rrd(
    student_BP: Tensor,
    teacher_BP: Tensor,
    queue_QP: Tensor,
    filled: Tensor | int | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.02,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy between two distributions over the queue, mean over the batch.

    ``L = −Σ_q softmax(u_t · m_q / τ_t) log softmax(u_s · m_q / τ_s)`` with unit vectors u, and m the rows of the queue,
    which are features of the teacher. Its minimum is the entropy of the teacher's distribution, which gets no gradient.

    Args:
        student_BP: projected student features.
        teacher_BP: projected teacher features.
        queue_QP: unit vectors.
        filled: number of rows of the queue that are used; None: all.
        student_temperature: τ_s.
        teacher_temperature: τ_t, usually smaller than τ_s.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("projected features", student_BP, teacher_BP)
    student_BP, teacher_BP = F.normalize(student_BP.float()), F.normalize(teacher_BP.detach().float())
    empty_Q = torch.arange(len(queue_QP), device=queue_QP.device) >= (len(queue_QP) if filled is None else filled)
    logits_s, logits_t = (
        (rows @ queue_QP.T / temperature).masked_fill(empty_Q, torch.finfo(torch.float32).min)
        for rows, temperature in ((student_BP, student_temperature), (teacher_BP, teacher_temperature))
    )
    return weighed(F.cross_entropy(logits_s, logits_t.softmax(dim=1), reduction="none"), weights_B).mean()


class RRD(Objective):
    """Relational representation distillation on pooled features, with a queue of teacher vectors. See :func:`rrd`.

    A trained linear layer projects the student's feature to width ``dim``, a fixed random orthogonal matrix the
    teacher's. The queue is empty before training and gets the batches of all ranks, first in, first out; the current
    batch is in it when the loss is computed.

    Paper: Giakoumoglou and Stathaki, Relational Representation Distillation, 2024, arXiv 2407.12073; queue 16384,
    temperatures 0.02 and 0.1.

    Deviation: the teacher's projection is fixed, since the loss gives it no gradient.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = FeatureShapes(2, pooled=8), FeatureShapes(2, pooled=16)
        >>> rrd = distill.create_objective("rrd", student=student, teacher=teacher)
        >>> student, teacher = distill.Features(pooled=torch.ones(1, 8)), distill.Features(pooled=torch.ones(1, 16))
        >>> rrd(student, teacher, distill.Targets(labels=torch.tensor([0]))).item()  # the queue holds this sample alone
        0.0
        >>> rrd.pushed.item()
        1
    """

    class Settings(Objective.Settings):
        type: Literal["rrd"] = "rrd"
        dim: int = Field(128, gt=0, description="width of the projected features, at most the teacher's own")
        queue: int = Field(16384, gt=0, description="number of teacher features in the queue")
        student_temperature: float = Field(0.1, gt=0, description="τ_s")
        teacher_temperature: float = Field(0.02, gt=0, description="τ_t, usually smaller than τ_s")

    weighs_samples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Giakoumoglou and Stathaki 2024, arXiv 2407.12073"

    settings: Settings
    projection: Tensor
    queue: Tensor
    pushed: Tensor

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        width = require_teacher(teacher).pooled
        dim = min(settings.dim, width)
        self.student_projector = nn.Linear(student.pooled, dim)
        self.register_buffer("projection", nn.init.orthogonal_(torch.empty(dim, width)))
        self.register_buffer("queue", torch.zeros(settings.queue, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        teacher_BP = F.normalize(teacher_BD @ self.projection.T)
        push(self.queue, self.pushed, gather_batch(teacher_BP))
        s = self.settings
        student_BP = self.student_projector(student_BD)
        # A copy, since a second pair of views changes the queue before the backward pass of the first.
        queue = self.queue.clone()
        temperatures = s.student_temperature, s.teacher_temperature
        return rrd(student_BP, teacher_BP, queue, self.pushed, *temperatures, batch.weights)
