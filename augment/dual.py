"""One batch in, the teacher's and the student's views out, under a view policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from torch import Tensor, nn

from augment.chain import Chain, normalised
from augment.draws import Draws
from augment.recipe import Op
from augment.settings import Settings
from augment.views import InputSpec, Views

Policy = Literal["identical", "independent", "shared_geometry", "weak_teacher", "both_to_both", "multicrop"]
Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]

_RESIZED_CROP = "RandomResizedCrop"
# Their result is the same part of the image at any network's size; other operations cut out ``size`` pixels.
_FREE_OF_SIZE = {_RESIZED_CROP, "Resize"}


def _weak() -> list[Op]:
    return [Op.model_validate({"type": _RESIZED_CROP, "scale": [0.8, 1.0]}), Op.model_validate("RandomHorizontalFlip")]


def _strong() -> list[Op]:
    jitter = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
    return [
        Op.model_validate({"type": _RESIZED_CROP, "scale": [0.3, 1.0]}),
        Op.model_validate("RandomHorizontalFlip"),
        Op.model_validate(jitter),
        Op.model_validate({"type": "RandomGrayscale", "p": 0.2}),
    ]


class AugmentSettings(Settings):
    """How the two views of a batch relate, and what is done to each.

    ==================  ==========================================================================================
    policy              views
    ==================  ==========================================================================================
    identical           one view by the student's recipe; each network gets it at its size and normalisation
    independent         each network its own recipe and its own draws
    shared_geometry     the same crop, flip and warp for both; colour, blur and noise drawn for each
    weak_teacher        as independent, but the teacher's recipe is a mild crop and a flip unless given
    both_to_both        a view by either recipe; both networks see both, all four pairs are compared
    multicrop           as both_to_both, and the student also sees small local crops; pairs (teacher's view g, student's
                        view s) for every s ≠ g, as in DINO (arXiv 2104.14294)
    ==================  ==========================================================================================

    A ``teacher`` recipe that is not given is the student's (its geometric part alone under shared_geometry).
    """

    policy: Policy = "weak_teacher"
    student: list[Op] = Field(default_factory=_strong, description="the student's operations, in order")
    teacher: list[Op] | None = Field(None, description="the teacher's operations; the default depends on the policy")
    local_crops: int = Field(4, ge=1, le=32, description="multicrop: how many small crops the student sees")
    local_scale: Scale = Field((0.05, 0.3), description="multicrop: part of the image's area in a small crop")
    local_size: Annotated[int, Field(ge=8)] | None = Field(
        None, description="multicrop: side of a small crop in pixels; default half the student's input size"
    )

    @model_validator(mode="after")
    def _fits_the_policy(self) -> AugmentSettings:
        if self.policy == "identical" and self.teacher is not None:
            raise _error("teacher", "policy 'identical' shows both networks the student's view; leave teacher out")
        if self.policy == "shared_geometry":
            theirs, ours = _geometry(self.teacher or []), _geometry(self.student)
            if theirs and theirs != ours:
                raise _error(
                    "teacher",
                    f"policy 'shared_geometry' needs the student's geometric operations, {_named(ours)}, "
                    f"but the teacher's are {_named(theirs)}; leave them out to take the student's",
                )
        if self.local_scale[0] > self.local_scale[1]:
            raise _error("local_scale", f"the smaller part comes first, but it is {list(self.local_scale)}")
        for key in ("local_crops", "local_scale", "local_size"):
            if self.policy != "multicrop" and getattr(self, key) != type(self).model_fields[key].default:
                raise _error(key, f"only policy 'multicrop' has local crops, but the policy is {self.policy!r}")
        return self

    def teacher_recipe(self) -> list[Op]:
        """What the teacher's view goes through, with the policy's default filled in."""
        if self.policy == "shared_geometry" and not _geometry(self.teacher or []):
            return _geometry(self.student) + (self.teacher or [])
        if self.teacher is not None:
            return self.teacher
        return _weak() if self.policy == "weak_teacher" else self.student

    def local_recipe(self) -> list[Op]:
        """The student's recipe with its crop made local."""
        local = [op for op in self.student if op.type != _RESIZED_CROP]
        return [Op.model_validate({"type": _RESIZED_CROP, "scale": list(self.local_scale)}), *local]


def _error(key: str, text: str) -> ValidationError:
    detail = PydanticCustomError("policy", "{reason}", {"reason": text})
    return ValidationError.from_exception_data(
        "AugmentSettings", [InitErrorDetails(type=detail, loc=(key,), input=None)]
    )


def _geometry(recipe: Sequence[Op]) -> list[Op]:
    return [op for op in recipe if op.geometric]


def _named(recipe: Sequence[Op]) -> str:
    return "[" + ", ".join(str(op.model_dump()) for op in recipe) + "]"


@dataclass(frozen=True)
class Look:
    """One view before it is made for a network: a recipe, the key of its draws, and of its geometry if shared."""

    recipe: list[Op]
    key: str
    geometry: str | None = None
    size: tuple[int, int] | None = None
    """Instead of the network's own size."""


@dataclass(frozen=True)
class Plan:
    """Which looks the teacher and the student get, and which of them objectives compare."""

    teacher: tuple[Look, ...]
    student: tuple[Look, ...]
    pairs: tuple[tuple[int, int], ...] = ((0, 0),)


def plan_views(settings: AugmentSettings, student: InputSpec) -> Plan:
    """The plan of a policy."""
    geometry = "geometry" if settings.policy == "shared_geometry" else None
    theirs = Look(settings.teacher_recipe(), "teacher", geometry)
    ours = Look(settings.student, "student", geometry)
    if settings.policy == "identical":
        return Plan((ours,), (ours,))
    if settings.policy == "both_to_both":
        return Plan((theirs, ours), (theirs, ours), ((0, 0), (0, 1), (1, 0), (1, 1)))
    if settings.policy == "multicrop":
        height, width = student.size
        side = settings.local_size
        size = (side, side) if side else (height // 2, width // 2)
        recipe = settings.local_recipe()
        local = tuple(Look(recipe, f"local{n}", size=size) for n in range(settings.local_crops))
        crops = (theirs, ours, *local)
        return Plan((theirs, ours), crops, tuple((g, s) for g in range(2) for s in range(len(crops)) if s != g))
    return Plan((theirs,), (ours,))


class DualAugment(nn.Module):
    """Makes the views of a batch.

    Args:
        settings: policy and recipes.
        teachers: what each network of the teacher expects; empty for training without a teacher.
        student: what the student expects.
        seed: the run's seed.

    Nothing is stored between calls: the same ids and epoch give the same views again, in any batch.
    """

    def __init__(self, settings: AugmentSettings, teachers: Sequence[InputSpec], student: InputSpec, seed: int):
        super().__init__()
        self.teachers, self.student, self.seed = tuple(teachers), student, seed
        plan = plan_views(settings, student)
        _check_sizes(plan, self.teachers, student)
        self.plan = plan
        if not self.teachers:
            self.plan = Plan((), plan.student, tuple((0, view) for view in range(len(plan.student))))
        self.chains = nn.ModuleDict()
        wanted = [(look, spec) for spec in self.teachers for look in self.plan.teacher]
        for look, spec in [*wanted, *((look, student) for look in self.plan.student)]:
            size = look.size or spec.size
            name = _chain_name(look, size)
            if name not in self.chains:
                self.chains[name] = Chain(look.recipe, size)

    @torch.no_grad()
    def forward(self, images: Tensor, ids: Tensor, epoch: int) -> Views:
        """The views of a batch.

        Args:
            images: [B, 3, H, W] uint8 (or floats in [0, 1]); the views are made on their device.
            ids: [B] int64, see :func:`augment.draws.sample_key`. Best on the CPU, where kornia makes its
                parameters: ids on a GPU have to be waited for.
            epoch: number of the epoch.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"images must be [B, 3, H, W] with B > 0, not {list(images.shape)}")
        if ids.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images need ids [{len(images)}], not {list(ids.shape)}")
        host_ids = ids.cpu()
        made: dict[tuple[str, InputSpec | None], Tensor] = {}

        def view(look: Look, spec: InputSpec) -> Tensor:
            # Networks of one size share the pixels of a view, of one specification the view itself.
            name = _chain_name(look, look.size or spec.size)
            if (name, None) not in made:
                draws = Draws(self.seed, epoch, look.key, host_ids)
                geometry = Draws(self.seed, epoch, look.geometry, host_ids) if look.geometry else None
                made[name, None] = self.chains[name](images, draws, geometry)
            if (name, spec) not in made:
                made[name, spec] = normalised(made[name, None], spec)
            return made[name, spec]

        # Autocast would warp on a bf16 grid.
        with torch.autocast(images.device.type, enabled=False):
            teacher = tuple(tuple(view(look, spec) for look in self.plan.teacher) for spec in self.teachers)
            student = tuple(view(look, self.student) for look in self.plan.student)
        return Views(teacher, student, self.plan.pairs)


def _chain_name(look: Look, size: tuple[int, int]) -> str:
    return f"{look.key} {size[0]}x{size[1]}"


def _check_sizes(plan: Plan, teachers: Sequence[InputSpec], student: InputSpec) -> None:
    """Refuse a crop of the network's own pixels where networks of different sizes should see the same part."""
    sizes = {spec.size for spec in (*teachers, student)}
    shared = {look.key for look in plan.teacher} & {look.key for look in plan.student}
    for look in (*plan.teacher, *plan.student):
        for op in look.recipe:
            bound = op.type not in _FREE_OF_SIZE and op.follows_network_size and op.geometric
            if bound and len(sizes) > 1 and (look.key in shared or look.geometry):
                raise ValueError(
                    f"{op.type} needs its argument 'size': the networks' input sizes differ ({sorted(sizes)}), "
                    "so by default they would see different parts of the image"
                )
