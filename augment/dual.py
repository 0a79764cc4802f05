"""One batch in, the teacher's and the student's views out, under a view policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from augment.chain import Chain, normalised, resized, to_unit
from augment.draws import Draws
from augment.fuse.colour import by_sample
from augment.mix import mixed
from augment.policy import FREE_OF_SIZE, AugmentSettings, Look, Plan, plan_views
from augment.views import InputSpec, Looks, Views

__all__ = ["AugmentSettings", "DualAugment"]


class DualAugment(nn.Module):
    """Makes the views of a batch.

    Args:
        settings: policy and recipes.
        teachers: what each network of the teacher expects; empty for training without a teacher.
        student: what the student expects.
        seed: the run's seed.

    Nothing is stored between calls: the same ids and epoch give the same views again, in any batch; only mixing
    (``settings.mix``) depends on the batch too.
    """

    def __init__(self, settings: AugmentSettings, teachers: Sequence[InputSpec], student: InputSpec, seed: int):
        super().__init__()
        self.teachers, self.student, self.seed = tuple(teachers), student, seed
        self.settings, self.mix = settings, settings.mix
        plan = plan_views(settings, student)
        _check_sizes(plan, self.teachers, student)
        self.plan = plan
        _check_domains(self.teachers, student)
        if not self.teachers:
            self.plan = Plan((), plan.student, tuple((0, view) for view in range(len(plan.student))))
        self.chains = nn.ModuleDict()
        self._looks: dict[str, Look] = {}
        self._specs: dict[str, set[InputSpec]] = {}
        wanted = [(look, spec) for spec in self.teachers for look in self.plan.teacher]
        for look, spec in [*wanted, *((look, student) for look in self.plan.student)]:
            size = look.size or spec.size
            name = _chain_name(look, size)
            if name not in self.chains:
                self.chains[name] = Chain(look.recipe, size, settings.engine, settings.compile, student.bounded)
                self._looks[name] = look
            self._specs.setdefault(name, set()).add(spec)

    @torch.no_grad()
    def looks(self, images: Tensor, ids: Tensor, epoch: int, *, teacher: bool = True) -> Looks:
        """The pixels of every view as bytes, for :meth:`forward` to finish: what a loader's worker does of the work.

        Without ``teacher``, of the student's views alone.
        """
        if not self.student.bounded:
            raise ValueError("values without bounds cannot be kept as bytes: use placement: device")
        student = {_chain_name(look, look.size or self.student.size) for look in self.plan.student}
        made = {name: self._pixels(name, images, ids, epoch) for name in self.chains if teacher or name in student}
        return {name: pixels.mul(255).round_().to(torch.uint8) for name, pixels in made.items()}

    def _pixels(self, name: str, images: Tensor, ids: Tensor, epoch: int, spec: InputSpec | None = None) -> Tensor:
        look = self._looks[name]
        draws = Draws(self.seed, epoch, look.key, ids)
        geometry = Draws(self.seed, epoch, look.geometry, ids) if look.geometry else None
        pixels = self.chains[name](images, draws, geometry, spec)
        share = self.settings.ramp.share(epoch) if self.settings.ramp else 1.0
        if share == 1:
            return pixels
        augmented = Draws(self.seed, epoch, "ramp", ids).to(images.device).bernoulli(0, share)
        plain = resized(to_unit(images), self.chains[name].size)  # type: ignore[arg-type]
        return torch.where(by_sample(augmented), pixels, normalised(plain, spec) if spec else plain)

    @torch.no_grad()
    def forward(
        self, images: Tensor | Looks, ids: Tensor, epoch: int, *, teacher: bool = True, student: bool = True
    ) -> Views:
        """The views of a batch.

        Args:
            images: [B, C, H, W] uint8 (or floats in [0, 1]); the views are made on their device. Or what
                :meth:`looks` made of them: the same views, within the rounding to a byte.
            ids: [B] int64, see :func:`augment.draws.sample_key`. Best on the CPU: they are copied to a GPU without
                a wait, but mixing and operations that are kornia's own code need them on the CPU too.
            epoch: number of the epoch.
            teacher, student: whose views to make; what is left out is empty in the result, and changes nothing else.
        """
        made: dict[tuple[str, InputSpec | None], Tensor] = {}
        if isinstance(images, Mapping):
            made = {(name, None): to_unit(pixels) for name, pixels in images.items()}
        batch = next(iter(images.values())) if isinstance(images, Mapping) else images
        channels = len(self.student.mean)
        if batch.ndim != 4 or batch.shape[1] != channels or not len(batch):
            raise ValueError(f"images must be [B, {channels}, H, W] with B > 0, not {list(batch.shape)}")
        if ids.shape != batch.shape[:1]:
            raise ValueError(f"{len(batch)} images need ids [{len(batch)}], not {list(ids.shape)}")

        def view(look: Look, spec: InputSpec) -> Tensor:
            # Networks of one size share the pixels of a view, of one specification the view itself.
            name = _chain_name(look, look.size or spec.size)
            if (name, spec) in made:
                return made[name, spec]
            if (name, None) in made:
                made[name, spec] = normalised(made[name, None], spec)
            elif isinstance(images, Mapping):
                raise ValueError(f"the look {name!r} was left out where the others were made")
            elif self._specs[name] == {spec}:  # nobody else needs the pixels: the chain's last write normalises them
                made[name, spec] = self._pixels(name, batch, ids, epoch, spec)
            else:
                made[name, None] = self._pixels(name, batch, ids, epoch)
                made[name, spec] = normalised(made[name, None], spec)
            return made[name, spec]

        # Autocast would warp on a bf16 grid.
        with torch.autocast(batch.device.type, enabled=False):
            theirs = [tuple(view(look, spec) for look in self.plan.teacher) for spec in self.teachers if teacher]
            ours = [view(look, self.student) for look in self.plan.student if student]
        views = Views(tuple(theirs), tuple(ours), self.plan.pairs)
        return mixed(views, self.mix, self.seed, epoch, ids.cpu()) if self.mix else views


def _chain_name(look: Look, size: tuple[int, int]) -> str:
    return f"{look.key} {size[0]}x{size[1]}"


def _check_domains(teachers: Sequence[InputSpec], student: InputSpec) -> None:
    for spec in teachers:
        if (len(spec.mean), spec.bounded) != (len(student.mean), student.bounded):
            raise ValueError(f"teacher and student look at one batch, but expect different kinds: {spec} and {student}")


def _check_sizes(plan: Plan, teachers: Sequence[InputSpec], student: InputSpec) -> None:
    """Refuse a crop of the network's own pixels where networks of different sizes should see the same part."""
    sizes = {spec.size for spec in (*teachers, student)}
    shared = {look.key for look in plan.teacher} & {look.key for look in plan.student}
    for look in (*plan.teacher, *plan.student):
        for op in look.recipe:
            bound = op.type not in FREE_OF_SIZE and op.follows_network_size and op.geometric
            if bound and len(sizes) > 1 and (look.key in shared or look.geometry):
                raise ValueError(
                    f"{op.type} needs its argument 'size': the networks' input sizes differ ({sorted(sizes)}), "
                    "so by default they would see different parts of the image"
                )
