"""A label map with soft rows: the probabilities of a teacher's classes, distributed over the student's by similarity.

Shape suffixes: B batch, T the teacher's classes, K the student's, E width of the text embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.models.label_map import LabelMap
from distill.text.classes import ClassText

TINY = 1e-12
"""Added to probabilities before the logarithm."""


class SoftLabelMap(LabelMap):
    """Gives the student's classes logits from the teacher's, by the similarity of their texts.

    ``method: map``: ``p_student = p_teacher M``, ``M[j, k] = softmax_k(s_j · t_k / τ)``; logits ``log p_student``.

    ``method: conse`` (arXiv 1312.5650): ``e = normalized Σ_j p_j s_j`` over the ``top`` likeliest teacher classes;
    logits ``e · t_k / τ``.

    ``balance`` subtracts a number from each student class's logits, chosen such that the mean prediction for ``s``
    itself (each teacher class once) is uniform. It keeps classes whose texts are near to all others (hubs) from taking
    most images.

    Args:
        teacher_TE: s, embeddings of the teacher's classes, normalized.
        student_KE: t, of the student's classes, normalized.
        temperature: τ.
        method: ``map`` or ``conse``.
        top: number of teacher classes that ``conse`` reads; ``map`` reads all.
        balance: whether logits are balanced.

    Example:
        >>> import torch
        >>> from distill.models.soft_label_map import SoftLabelMap
        >>> soft = SoftLabelMap(torch.eye(3), torch.eye(3)[:2], temperature=0.5, method="map", top=3)
        >>> soft.of_teacher(torch.tensor([[9.0, 0.0, 0.0]])).softmax(1).round(decimals=2)
        tensor([[0.8800, 0.1200]])
    """

    teacher_TE: Tensor
    student_KE: Tensor
    map_TK: Tensor
    offset_K: Tensor
    texts: tuple[ClassText, ...] = ()
    """Of the student's classes, for the report."""
    teacher_texts: tuple[ClassText, ...] = ()

    def __init__(
        self,
        teacher_TE: Tensor,
        student_KE: Tensor,
        *,
        temperature: float,
        method: str,
        top: int,
        balance: bool = False,
    ):
        teacher_classes, student_classes = len(teacher_TE), len(student_KE)
        super().__init__(
            {k: [k] for k in range(student_classes)}, student_classes, max(student_classes, teacher_classes)
        )
        self.teacher_classes, self.method = teacher_classes, method
        self.temperature = temperature
        self.top = min(top, teacher_classes) if method == "conse" else teacher_classes
        similarity_TK = teacher_TE @ student_KE.T
        self._keep(teacher_TE=teacher_TE, student_KE=student_KE, map_TK=(similarity_TK / temperature).softmax(1))
        self._keep(offset_K=torch.zeros(student_classes))
        if balance:
            certain_TT = torch.eye(teacher_classes) * 30
            self.offset_K.copy_(balancing(self.of_teacher(certain_TT)))

    def extra_repr(self) -> str:
        return (
            f"student_classes={self.student_classes}, teacher_classes={self.teacher_classes}, method={self.method}, "
            f"temperature={self.temperature:g}, top={self.top}"
        )

    def of_teacher(self, logits_BT: Tensor) -> Tensor:
        """The teacher's logits as logits of the student's classes, [B, T] → [B, K]."""
        if logits_BT.ndim != 2 or logits_BT.shape[1] != self.teacher_classes:
            raise ValueError(f"teacher logits of shape {tuple(logits_BT.shape)}, expected (B, {self.teacher_classes})")
        p_BT = logits_BT.softmax(1)
        if self.top < self.teacher_classes:
            kept_BG, classes_BG = p_BT.topk(self.top, dim=1)
            p_BT = torch.zeros_like(p_BT).scatter(1, classes_BG, kept_BG / kept_BG.sum(1, keepdim=True))
        if self.method == "map":
            return (p_BT @ self.map_TK.to(p_BT) + TINY).log() - self.offset_K.to(p_BT)
        e_BE = F.normalize(p_BT @ self.teacher_TE.to(p_BT), dim=1)
        return e_BE @ self.student_KE.to(p_BT).T / self.temperature - self.offset_K.to(p_BT)

    def top_entries(self, names: Sequence[str], count: int = 3) -> list[list[tuple[str, float]]]:
        """For each student class, the teacher classes that give it most, with M[j, k]."""
        values_KG, classes_KG = self.map_TK.T.topk(min(count, self.teacher_classes), dim=1)
        return [
            [(names[j], value) for j, value in zip(classes, values)]
            for classes, values in zip(classes_KG.tolist(), values_KG.tolist())
        ]


def balancing(logits_NK: Tensor, rounds: int = 200) -> Tensor:
    """b [K] of mean 0 such that the mean of ``softmax(logits − b)`` over N is nearly uniform.

    Args:
        logits_NK: of N predictions.
        rounds: number of updates ``b ← b + ½ log(K · mean)``.

    Returns:
        The offsets.
    """
    classes = logits_NK.shape[1]
    offset_K = torch.zeros(classes)
    for _ in range(rounds):
        mean_K = (logits_NK - offset_K).softmax(1).mean(0)
        offset_K = offset_K + 0.5 * (mean_K * classes + TINY).log()
    return offset_K - offset_K.mean()
