"""The loss as a sum of named terms, over the pairs of views that the policy declares and over all teachers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Batch, Objective


class Term(nn.Module):
    """One objective in the sum: built once per teacher if it reads the teacher, averaged over the pairs of views."""

    def __init__(
        self,
        name: str,
        settings: Objective.Settings,
        student: FeatureShapes,
        teachers: Sequence[FeatureShapes],
        teacher_weights: Sequence[float],
    ):
        super().__init__()
        self.name = name
        self.settings = settings
        cls = settings.component
        assert cls is not None and issubclass(cls, Objective)
        self.reads_teacher, self.needs_index = cls.reads_teacher, cls.needs_index
        self.teacher_weights = list(teacher_weights)
        opposite: list[FeatureShapes | None] = [*teachers] if cls.reads_teacher else [None]
        self.objectives = nn.ModuleList(cls(settings, student, shapes) for shapes in opposite)

    def weight(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Its factor in the sum at a step."""
        return self.settings.weight * self.settings.schedule.factor(step, steps_per_epoch, epochs)

    def remember(self, labels: Tensor) -> None:
        for objective in self.objectives:
            objective.remember(labels)  # type: ignore[operator]

    def after_step(self) -> None:
        for objective in self.objectives:
            objective.after_step()  # type: ignore[operator]

    def forward(
        self,
        students: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        pairs: Sequence[tuple[int, int]],
        batches: Sequence[Batch],
    ) -> Tensor:
        """The unweighted term.

        ``students[v]``, ``teachers[n][v]`` and ``batches[v]`` belong to view v of the student, of teacher n, and again
        of the student; ``pairs`` are (teacher, student).
        """
        if not self.reads_teacher:
            alone = [self.objectives[0](view, None, batch) for view, batch in zip(students, batches, strict=True)]
            return sum(alone) / len(alone)
        return sum(
            weight * sum(objective(students[s], views[t], batches[s]) for t, s in pairs) / len(pairs)
            for objective, weight, views in zip(self.objectives, self.teacher_weights, teachers, strict=True)
        )


def build_terms(
    objectives: Sequence[Objective.Settings],
    student: FeatureShapes,
    teachers: Sequence[FeatureShapes],
    teacher_weights: Sequence[float],
) -> list[Term]:
    """One term per objective, named by its type; a second one of a type is called ``type-2``."""
    seen: Counter[str] = Counter()
    terms = []
    for settings in objectives:
        kind = settings.type.rpartition(":")[2].lower()
        seen[kind] += 1
        name = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
        terms.append(Term(name, settings, student, teachers, teacher_weights))
    return terms


def needs_of(objectives: Sequence[Objective.Settings]) -> tuple[frozenset[str], frozenset[str]]:
    """What the objectives read of the student and of the teacher, of ``{"logits", "pooled", "maps"}``."""
    student: frozenset[str] = frozenset({"logits"})
    teacher: frozenset[str] = frozenset({"logits"})
    for settings in objectives:
        cls = settings.component
        assert cls is not None and issubclass(cls, Objective)
        student |= cls.needs
        if cls.reads_teacher:
            teacher |= cls.needs - {"token"}
    return student, teacher
