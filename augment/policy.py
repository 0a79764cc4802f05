"""View policies: how the teacher's and the student's view of a batch relate. Settings and plans; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Settings, error_at, is_deferred
from augment.presets import Recipe, strong, weak
from augment.recipe import Op
from augment.views import InputSpec

Policy = Literal["identical", "independent", "shared_geometry", "weak_teacher", "both_to_both", "multicrop"]
Placement = Literal["auto", "device", "loader"]
PairKind = Literal["all", "same", "cross"]
Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]

_RESIZED_CROP = "RandomResizedCrop"
# They show the same part of the image at any network's size; other operations cut out ``size`` pixels.
FREE_OF_SIZE = {_RESIZED_CROP, "Resize"}


class LocalCrops(Settings):
    """Small crops of one size. DINO uses 8 of 96 pixels beside its global ones of 224, SwAV 6."""

    crops: int = Field(4, ge=1, le=32, description="how many the student sees")
    scale: Scale = Field((0.05, 0.3), description="fraction of the image's area in a crop")
    size: Annotated[int, Field(ge=8)] | None = Field(
        None, description="side of a crop in pixels; default half the student's input size"
    )
    recipe: Recipe | None = Field(None, description="operations, their crop made local; default the student's")

    @model_validator(mode="after")
    def _in_order(self) -> LocalCrops:
        if self.scale[0] > self.scale[1]:
            raise error_at("scale", f"the smaller fraction comes first, but it is {list(self.scale)}")
        return self

    def operations(self, student: list[Op]) -> list[Op]:
        """The recipe with its crop at the local scale."""
        recipe = student if self.recipe is None else self.recipe
        crop = next((op.arguments for op in recipe if op.type == _RESIZED_CROP), {})
        local = Op.of(_RESIZED_CROP, **{**crop, "scale": list(self.scale)})
        return [local, *(op for op in recipe if op.type != _RESIZED_CROP)]


class MixSettings(Settings):
    """Mixup and cutmix of a batch: drawn once, applied to every view. See :mod:`augment.mix`."""

    mixup: float = Field(0.0, ge=0, description="α of mixup's λ ~ Beta(α, α); 0 turns it off; DeiT has 0.8")
    cutmix: float = Field(0.0, ge=0, description="α of cutmix's λ ~ Beta(α, α); 0 turns it off; DeiT has 1.0")
    p: float = Field(1.0, gt=0, le=1, description="fraction of the batches that are mixed")
    switch_p: float = Field(0.5, ge=0, le=1, description="probability of cutmix for a mixed batch if both are on")

    @model_validator(mode="after")
    def _mixes(self) -> MixSettings:
        if self.mixup == self.cutmix == 0:
            raise error_at("mixup", "neither mixup nor cutmix is on; give one of them an α above 0, or remove mix")
        return self


class RampSettings(Settings):
    """A growing fraction of the samples is augmented. The others are only resized, in all of their views.

    The fraction of augmented samples rises linearly from ``start`` to 1, reached after ``epochs`` epochs. Which samples
    they are is drawn anew in every epoch, once for all views, so two views of a sample relate as the policy says.
    """

    epochs: float = Field(gt=0, description="after which every sample is augmented")
    start: float = Field(0.0, ge=0, lt=1, description="fraction of augmented samples in the first epoch")

    def share(self, epoch: int) -> float:
        """Fraction of the samples that are augmented in an epoch."""
        return min(1.0, self.start + (1 - self.start) * epoch / self.epochs)


class AugmentSettings(Settings):
    """How the two views of a batch relate, and the operations of each.

    ==================  ==========================================================================================
    policy              views
    ==================  ==========================================================================================
    identical           one view by the student's recipe; each network gets it at its size and normalization
    independent         each network has its own recipe and its own draws
    shared_geometry     the same crop, flip and warp for both; color, blur and noise drawn for each
    weak_teacher        as independent, but the teacher's recipe is a mild crop and a flip unless given
    both_to_both        a view by either recipe; both networks see both, all four pairs are compared
    multicrop           as both_to_both, and the student also sees small local crops; pairs (teacher's view g, student's
                        view s) for every s ≠ g, as in DINO (arXiv 2104.14294)
    ==================  ==========================================================================================

    A ``teacher`` recipe that is not given is the student's (its geometric part alone under shared_geometry).
    """

    policy: Policy = "weak_teacher"
    student: Recipe = Field(default_factory=strong, description="the student's operations, in order, or a preset")
    teacher: Recipe | None = Field(None, description="the teacher's operations; the default depends on the policy")
    local: list[LocalCrops] = Field(
        default_factory=lambda: [LocalCrops()],
        min_length=1,
        description="multicrop: the student's small crops, a group for every size",
    )
    placement: Placement = Field(
        "device",
        description="where views are made: on the device, by the loader's workers, or measured once (auto)",
    )
    engine: Literal["fused", "kornia"] = Field(
        "fused",
        description="fused: operations are computed together in few passes; kornia: one by one by kornia's own code",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="compile the passes, by torch.compile on a GPU, in C on a CPU; auto: if there is a compiler",
    )
    mix: MixSettings | None = Field(None, description="mixup and cutmix of every view; none means neither")
    ramp: RampSettings | None = Field(None, description="augment a growing fraction of the samples; none: all of them")

    def check(self, one_class: Sequence[str]) -> None:
        """Refuse mixing for objectives that need one class per image; ``one_class`` are their types."""
        if one_class and self.mix is not None:
            raise error_at(
                "augment.mix", f"{', '.join(one_class)} needs one class per image, but mixing gives an image two"
            )

    @model_validator(mode="after")
    def _fits_the_policy(self, info: ValidationInfo) -> AugmentSettings:
        if self.policy == "identical" and self.teacher is not None:
            raise error_at("teacher", "policy 'identical' shows both networks the student's view; leave teacher out")
        if self.policy == "shared_geometry" and not is_deferred(info, "operations"):
            teacher, student = _geometry(self.teacher or []), _geometry(self.student)
            if teacher and teacher != student:
                raise error_at(
                    "teacher",
                    f"policy 'shared_geometry' needs the student's geometric operations, {_named(student)}, "
                    f"but the teacher's are {_named(teacher)}; leave them out to take the student's",
                )
        if self.policy == "multicrop" and not is_deferred(info, "operations"):
            for key, recipe in (("student", self.student), *(("local", group.recipe or []) for group in self.local)):
                _refuse_hidden_crops(key, recipe)
        if self.policy != "multicrop" and self.local != [LocalCrops()]:
            raise error_at("local", f"only policy 'multicrop' has local crops, but the policy is {self.policy!r}")
        return self

    def alone(self, length: float = 1.0) -> AugmentSettings:
        """The same settings without a teacher's view, for a student that is trained without a teacher.

        Under both_to_both the student sees a view by either recipe with a teacher, and so it does without one.

        Args:
            length: epochs of its training over epochs of the training with a teacher; a ramp is scaled with it.

        Returns:
            The settings.
        """
        ramp = self.ramp and self.ramp.model_copy(update={"epochs": self.ramp.epochs * length})
        if self.policy == "both_to_both":
            return self.model_copy(update={"ramp": ramp})
        return self.model_copy(update={"policy": "identical", "teacher": None, "ramp": ramp})

    def one_view(self) -> AugmentSettings:
        """The same settings with a single view, by the student's recipe."""
        return self.model_copy(update={"policy": "identical", "teacher": None})

    def teacher_recipe(self) -> list[Op]:
        """The operations of the teacher's view, with the policy's default filled in."""
        if self.policy == "shared_geometry" and not _geometry(self.teacher or []):
            return _geometry(self.student) + (self.teacher or [])
        if self.teacher is not None:
            return self.teacher
        return weak() if self.policy == "weak_teacher" else self.student


def _refuse_hidden_crops(key: str, recipe: Sequence[Op]) -> None:
    for op in recipe:
        if op.type != _RESIZED_CROP and any(leaf.type == _RESIZED_CROP for leaf in op.leaves):
            raise error_at(
                key,
                f"policy 'multicrop' replaces {_RESIZED_CROP} in the local crops, but it is inside {op.type}; "
                "list it by itself",
            )


def _geometry(recipe: Sequence[Op]) -> list[Op]:
    return [op.geometry for op in recipe if op.geometric]


def _named(recipe: Sequence[Op]) -> str:
    return "[" + ", ".join(str(op.model_dump()) for op in recipe) + "]"


@dataclass(frozen=True)
class ViewSpec:
    """One view before it is made for a network: a recipe, the key of its draws, and of its geometry if shared."""

    recipe: list[Op]
    key: str
    geometry: str | None = None
    size: tuple[int, int] | None = None
    """Instead of the network's own size."""


@dataclass(frozen=True)
class ViewPlan:
    """The views of the teacher and of the student, and the pairs that objectives compare."""

    teacher: tuple[ViewSpec, ...]
    student: tuple[ViewSpec, ...]
    pairs: tuple[tuple[int, int], ...] = ((0, 0),)

    def pairs_of(self, kind: PairKind) -> tuple[tuple[int, int], ...]:
        """The (teacher's view, student's view) pairs of a kind.

        Args:
            kind: ``all``: those of the policy; ``cross``: those of them whose views differ; ``same``: one view for
                both, whether the policy has that pair or not.

        Returns:
            The pairs, maybe none.
        """
        if kind == "all":
            return self.pairs
        if kind == "cross":
            return tuple((t, s) for t, s in self.pairs if self.teacher[t] != self.student[s])
        return tuple((t, self.student.index(view)) for t, view in enumerate(self.teacher) if view in self.student)


def plan_views(settings: AugmentSettings, student: InputSpec) -> ViewPlan:
    """The plan of a policy."""
    geometry = "geometry" if settings.policy == "shared_geometry" else None
    teacher_view = ViewSpec(settings.teacher_recipe(), "teacher", geometry)
    student_view = ViewSpec(settings.student, "student", geometry)
    if settings.policy == "identical":
        return ViewPlan((student_view,), (student_view,))
    if settings.policy == "both_to_both":
        return ViewPlan((teacher_view, student_view), (teacher_view, student_view), ((0, 0), (0, 1), (1, 0), (1, 1)))
    if settings.policy == "multicrop":
        height, width = student.size
        local: list[ViewSpec] = []
        for group in settings.local:
            size = (group.size, group.size) if group.size else (height // 2, width // 2)
            recipe = group.operations(settings.student)
            local += [ViewSpec(recipe, f"local{len(local) + n}", size=size) for n in range(group.crops)]
        crops = (teacher_view, student_view, *local)
        return ViewPlan(
            (teacher_view, student_view), crops, tuple((g, s) for g in range(2) for s in range(len(crops)) if s != g)
        )
    return ViewPlan((teacher_view,), (student_view,))
