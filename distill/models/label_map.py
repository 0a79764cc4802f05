"""Maps between the classes of a teacher and of a student, for comparing their logits.

Shape suffixes: B batch, T the teacher's classes, K the student's, S those of the student that the teacher has, G the
largest number of teacher classes that are mapped to one student class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distill.data.base import UNLABELED
from distill.models.features import Features, FeatureShapes


class LabelMap(nn.Module):
    """Maps logits and labels to the S classes that teacher and student share.

    Logits are selected, so a softmax over them is the network's softmax, renormalized over the shared classes. If
    several teacher classes are mapped to one student class, their probabilities are summed: ``logsumexp`` of their
    logits. A student class that the teacher lacks is left out of the comparison; a teacher class that is not mapped is
    ignored.

    Args:
        sources: student class → the teacher's classes that are mapped to it.
        student_classes: K.
        teacher_classes: T.

    Raises:
        ValueError: no class is shared, a class is out of range, or a teacher class is mapped to two student classes.
    """

    known_S: Tensor
    sources_SG: Tensor
    absent_SG: Tensor
    index_K: Tensor

    def __init__(self, sources: Mapping[int, Sequence[int]], student_classes: int, teacher_classes: int):
        super().__init__()
        known = sorted(student_class for student_class, teacher_class in sources.items() if teacher_class)
        if not known:
            raise ValueError("the teacher and the student share no class")
        for student_class in known:
            for index, count, whose in [(student_class, student_classes, "student")] + [
                (teacher_class, teacher_classes, "teacher") for teacher_class in sources[student_class]
            ]:
                if not 0 <= index < count:
                    raise ValueError(f"the {whose} has no class {index}: it has {count}, counted from 0")
        taken = [teacher_class for student_class in known for teacher_class in sources[student_class]]
        if len(set(taken)) < len(taken):
            twice = next(teacher_class for teacher_class in taken if taken.count(teacher_class) > 1)
            raise ValueError(f"the teacher's class {twice} is mapped to two of the student's")
        self.student_classes, self.teacher_classes = student_classes, teacher_classes
        self.classes = len(known)
        most = max(len(sources[student_class]) for student_class in known)
        rows = [[*sources[student_class], *[-1] * (most - len(sources[student_class]))] for student_class in known]
        sources_SG = torch.tensor(rows)
        index_K = torch.full((student_classes,), UNLABELED)
        index_K[known] = torch.arange(len(known))
        self._keep(known_S=torch.tensor(known), index_K=index_K)
        self._keep(sources_SG=sources_SG.clamp(min=0), absent_SG=sources_SG < 0)

    def _keep(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def whole(self) -> bool:
        """Whether the teacher has every class of the student."""
        return self.classes == self.student_classes

    def extra_repr(self) -> str:
        return (
            f"student_classes={self.student_classes}, teacher_classes={self.teacher_classes}, "
            f"shared_classes={self.classes}"
        )

    def of_teacher(self, logits_BT: Tensor) -> Tensor:
        """The teacher's logits of the shared classes, [B, T] → [B, S]."""
        if logits_BT.ndim != 2 or logits_BT.shape[1] != self.teacher_classes:
            raise ValueError(f"teacher logits of shape {tuple(logits_BT.shape)}, expected (B, {self.teacher_classes})")
        if self.sources_SG.shape[1] == 1:
            return logits_BT[:, self.sources_SG[:, 0]]
        return logits_BT[:, self.sources_SG].masked_fill(self.absent_SG, -torch.inf).logsumexp(2)

    def of_student(self, logits_BK: Tensor) -> Tensor:
        """The student's logits of the shared classes, [B, K] → [B, S]."""
        return logits_BK if self.whole else logits_BK[:, self.known_S]

    def labels(self, labels_B: Tensor) -> Tensor:
        """[B], indices of the shared classes; ``UNLABELED`` without a label, or for a class the teacher lacks."""
        return self.index_K[labels_B.clamp(min=0)].masked_fill(labels_B == UNLABELED, UNLABELED)

    def probabilities(self, logits_BT: Tensor) -> Tensor:
        """[B, K]: the softmax over the shared classes, NaN at those that the teacher lacks."""
        shared_BS = self.of_teacher(logits_BT).softmax(1)
        empty_BK = shared_BS.new_full((len(shared_BS), self.student_classes), torch.nan)
        return empty_BK.index_copy(1, self.known_S, shared_BS)

    def shapes(self, student: FeatureShapes, teacher: FeatureShapes) -> tuple[FeatureShapes, FeatureShapes]:
        """The shapes of both networks, with the shared classes, for objectives that read logits."""
        return replace(student, classes=self.classes), replace(teacher, classes=self.classes)

    def features(self, student: Features, teacher: Features) -> tuple[Features, Features]:
        """The outputs of both networks, with logits of the shared classes."""
        assert student.logits is not None and teacher.logits is not None
        student_class, teacher_class = self.of_student(student.logits), self.of_teacher(teacher.logits)
        return replace(student, logits=student_class), replace(teacher, logits=teacher_class)


class LabelMaps(nn.Module):
    """``maps[n]`` is the map of the teacher's network n; None if its classes are the student's."""

    def __init__(self, maps: Sequence[LabelMap | None] = ()):
        super().__init__()
        self.by_network = nn.ModuleDict({str(n): each for n, each in enumerate(maps) if each is not None})

    def __getitem__(self, n: int) -> LabelMap | None:
        if str(n) not in self.by_network:
            return None
        return self.by_network[str(n)]  # type: ignore[return-value]
