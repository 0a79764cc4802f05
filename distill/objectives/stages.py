"""Matches the stages of two networks and resizes their maps to one grid.

Shape suffixes: B batch, C channels, H W map size, of the student (s) or the teacher (t).

The tokens of a ViT are maps too, reshaped to their grid, so that a CNN and a ViT are compared as two CNNs are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from augment.base import did_you_mean
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import require_teacher, shape
from distill.objectives.ranks import weighed

Pairs = list[tuple[str, str]]


Stages = Literal["all", "middle", "last"] | dict[str, str]


def stages_field(default: Stages) -> Any:
    """The settings field ``stages`` with a method's default."""
    return Field(
        default,
        description="'all': every stage of the student with the teacher's stage of the nearest relative depth; "
        "'middle', 'last': that stage alone; or a mapping {student's stage: teacher's stage}",
    )


class MapObjective(Objective):
    """The base class of objectives that compare maps stage by stage.

    ``pairs`` are the matched stages, ``widths`` their channels (student's, teacher's), for projectors; ``maps(student,
    teacher)`` returns the maps. A subclass implements ``losses``, of which ``loss`` is the mean with the samples'
    weights; or ``loss``, if it compares samples with each other.
    """

    class Settings(Objective.Settings):
        stages: Stages = stages_field("all")

    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    weighs_samples: ClassVar[bool] = True

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.pairs = match_stages(settings.stages, student, teacher)
        self.widths = [
            (student.maps[stage_s][0], require_teacher(teacher).maps[stage_t][0]) for stage_s, stage_t in self.pairs
        ]

    def maps(self, student: Features, teacher: Features | None) -> list[tuple[Tensor, Tensor]]:
        """See :func:`map_pairs`."""
        return map_pairs(student, teacher, self.pairs)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        return weighed(self.losses(self.maps(student, teacher)), batch.weights).mean()

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """[B], the loss of every sample, from the maps of the pairs."""
        raise NotImplementedError


def match_stages(stages: Stages, student: FeatureShapes, teacher: FeatureShapes | None) -> Pairs:
    """(student's stage, teacher's stage) from shallow to deep.

    Stage i of n has depth ``(i + 1) / n``; it is matched with the teacher's stage of the nearest depth, the deeper one
    in a tie. So the last stages are always matched, and if the student has more stages than the teacher, some of the
    teacher's are used twice.

    Args:
        stages: ``all``, ``middle``, ``last``, or the student's stage → the teacher's.
        student: the student's shapes.
        teacher: the teacher's; None is an error.

    Returns:
        A list of pairs of stage names.

    Raises:
        ValueError: a stage that a network does not have; the text names those it has.
    """
    student_stages, teacher_stages = list(student.maps), list(require_teacher(teacher).maps)
    if isinstance(stages, dict):
        for side, wanted, known in (
            ("student", list(stages), student_stages),
            ("teacher", list(stages.values()), teacher_stages),
        ):
            for name in wanted:
                if name not in known:
                    raise ValueError(
                        f"stages: the {side} has no stage {name!r}{did_you_mean(name, known)}; "
                        f"it has {', '.join(known)}"
                    )
        return sorted(stages.items(), key=lambda pair: student_stages.index(pair[0]))
    if not student_stages or not teacher_stages:
        raise ValueError(f"the {'teacher' if student_stages else 'student'} reports no maps")

    def partner(index: int) -> str:
        depth = (index + 1) / len(student_stages)
        # Rounded, so that equal depths such as 1/3 and 2/6 tie.
        return min(
            reversed(teacher_stages),
            key=lambda name: round(abs((teacher_stages.index(name) + 1) / len(teacher_stages) - depth), 9),
        )

    chosen = {
        "all": range(len(student_stages)),
        "middle": [len(student_stages) // 2],
        "last": [len(student_stages) - 1],
    }[stages]
    return [(student_stages[index], partner(index)) for index in chosen]


def map_pairs(student: Features, teacher: Features | None, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """The maps of the pairs in fp32, the teacher's detached.

    Args:
        student: the student's outputs.
        teacher: the teacher's; None is an error.
        pairs: the matched stages, from :func:`match_stages`.

    Returns:
        For each pair the two maps, [B, C, H, W] each.

    Raises:
        ValueError: a map was not computed or has no batch, or the batches differ.
    """
    matched = []
    for name_s, name_t in pairs:
        maps = []
        for side, features, name in (("student", student, name_s), ("teacher", teacher, name_t)):
            map_ = None if features is None else features.maps.get(name)
            if map_ is None:
                raise ValueError(f"the {side} has no map {name!r}")
            if map_.ndim != 4 or map_.shape[0] == 0:
                raise ValueError(f"{side} map {name!r}: expected shape (batch, C, H, W), got {shape(map_)}")
            maps.append(map_.float())
        if maps[0].shape[0] != maps[1].shape[0]:
            raise ValueError(f"student and teacher maps differ in batch: {shape(maps[0])} and {shape(maps[1])}")
        matched.append((maps[0], maps[1].detach()))
    return matched


def mean_square(error_BCHW: Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    """The mean of the squares over ``dims``, computed from the norm: its gradient has the error's memory format.

    The gradient of ``error.square().mean(dims)`` has another: channels-last convolutions and batch norms would convert
    it, which takes longer than the loss itself.
    """
    count = math.prod(error_BCHW.shape[dim] for dim in dims)
    return torch.linalg.vector_norm(error_BCHW, dim=dims).square() / count


def on_one_grid(student_BCHW: Tensor, teacher_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps average-pooled to the smaller height and the smaller width of the two."""
    height, width = (min(student_BCHW.shape[dim], teacher_BCHW.shape[dim]) for dim in (2, 3))
    return tuple(
        map_ if map_.shape[2:] == (height, width) else F.adaptive_avg_pool2d(map_, (height, width))
        for map_ in (student_BCHW, teacher_BCHW)
    )  # type: ignore[return-value]
