"""DualAugment: the teacher's and the student's views of a batch, under a view policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from augment.chain import MUCH, Chain, normalized, resized, to_unit
from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.fuse.program import WHITE
from augment.mix import mixed
from augment.policy import FREE_OF_SIZE, AugmentSettings, ViewPlan, ViewSpec, plan_views
from augment.views import InputSpec, ViewPixels, Views

__all__ = ["AugmentSettings", "DualAugment"]

logger = logging.getLogger(__name__)


class DualAugment(nn.Module):
    """Make the teacher's and the student's views of a batch.

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
        self.view_plan = plan
        _check_domains(self.teachers, student)
        if not self.teachers:
            self.view_plan = ViewPlan((), plan.student, tuple((0, view) for view in range(len(plan.student))))
        self.chains = nn.ModuleDict()
        self._view_specs: dict[str, ViewSpec] = {}
        self._specs: dict[str, set[InputSpec]] = {}
        self._examined: set[str] = set()
        wanted = [(view_spec, spec) for spec in self.teachers for view_spec in self.view_plan.teacher]
        for view_spec, spec in [*wanted, *((view_spec, student) for view_spec in self.view_plan.student)]:
            size = view_spec.size or spec.size
            name = _chain_name(view_spec, size)
            if name not in self.chains:
                self.chains[name] = Chain(view_spec.recipe, size, settings.engine, settings.compile, student.bounded)
                self._view_specs[name] = view_spec
                self.chains[name].check_channels(len(student.mean))  # type: ignore[operator]
            self._specs.setdefault(name, set()).add(spec)

    def extra_repr(self) -> str:
        sizes = "".join(f", teacher={height}x{width}" for height, width in (spec.size for spec in self.teachers))
        height, width = self.student.size
        return f"policy={self.settings.policy}, student={height}x{width}{sizes}, seed={self.seed}"

    @torch.no_grad()
    def render(
        self, images: Tensor, ids: Tensor, epoch: int, *, teacher: bool = True, view_keys: Tensor | None = None
    ) -> ViewPixels:
        """The pixels of every view as integers, not normalized; :meth:`forward` normalizes them.

        Loader workers call this if the loader makes the views.

        Args:
            images: [B, C, H, W] uint8 or uint16, or floats in [0, 1].
            ids: [B] int64.
            epoch: number of the epoch.
            teacher: whether to make the teacher's views too.
            view_keys: as for :meth:`forward`.

        Returns:
            Name of a view → [B, C, h, w] of the images' type, uint8 for floats.
        """
        kind, images = images.dtype, chain_input(images)
        if not self.student.bounded:
            raise ValueError("values without bounds cannot be kept as integers: use placement: device")
        student = {_chain_name(view_spec, view_spec.size or self.student.size) for view_spec in self.view_plan.student}
        made = {
            name: self._pixels(name, images, ids, epoch, view_keys=view_keys)
            for name in self.chains
            if teacher or name in student
        }
        kind = kind if kind in WHITE else torch.uint8
        return {name: pixels.mul(WHITE[kind]).round_().to(kind) for name, pixels in made.items()}

    def _pixels(
        self,
        name: str,
        images: Tensor,
        ids: Tensor,
        epoch: int,
        spec: InputSpec | None = None,
        view_keys: Tensor | None = None,
    ) -> Tensor:
        if view_keys is None:
            return self._drawn(name, images, ids, self.seed, epoch, spec)
        pixels: Tensor | None = None
        for key in view_keys.unique().tolist():
            rows = (view_keys == key).nonzero()[:, 0]
            seed, at = (self.seed, epoch) if key < 0 else (key, 0)
            on_device = rows.to(images.device, non_blocking=True)
            part = self._drawn(name, images[on_device], ids[rows.to(ids.device)], seed, at, spec)
            if pixels is None:
                pixels = part.new_empty(len(images), *part.shape[1:])
            pixels[on_device] = part
        assert pixels is not None
        return pixels

    def _drawn(self, name: str, images: Tensor, ids: Tensor, seed: int, epoch: int, spec: InputSpec | None) -> Tensor:
        """The pixels of a view, from the draws of a seed and an epoch."""
        view_spec = self._view_specs[name]
        draws = Draws(seed, epoch, view_spec.key, ids)
        geometry = Draws(seed, epoch, view_spec.geometry, ids) if view_spec.geometry else None
        if name not in self._examined:
            self._examined.add(name)
            self._warn_of_clipping(name, images[:8], draws.of(ids[:8]), geometry and geometry.of(ids[:8]))
        pixels = self.chains[name](images, draws, geometry, spec)
        share = self.settings.ramp.share(epoch) if self.settings.ramp else 1.0
        if share == 1:
            return pixels
        augmented = Draws(seed, epoch, "ramp", ids).to(images.device).bernoulli(0, share)
        plain = resized(to_unit(images), self.chains[name].size)  # type: ignore[arg-type]
        return torch.where(by_sample(augmented), pixels, normalized(plain, spec) if spec else plain)

    def _warn_of_clipping(self, name: str, images: Tensor, draws: Draws, geometry: Draws | None) -> None:
        """Warn of a user's operation that leaves [0, 1] by far, as one that normalizes does."""
        chain: Chain = self.chains[name]  # type: ignore[assignment]
        if chain.clamps:
            share, culprit = chain.clipped(images, draws, geometry)
            if share > MUCH:
                logger.warning(
                    "augment: %s leaves [0, 1]: %.0f %% of the values of the view %r are clipped; operations give "
                    "images in [0, 1], and each network's view is normalized after the last one",
                    *(culprit, 100 * share, name),
                )

    @torch.no_grad()
    def diagnose(self, images: Tensor, ids: Tensor, epoch: int) -> None:
        """Apply the operations of every view one by one to find one whose result cannot be used.

        Args:
            images: [B, C, H, W] uint8 or uint16, or floats in [0, 1].
            ids: [B] int64.
            epoch: number of the epoch.

        Raises:
            ImageError: names the operation, and what is wrong with its result.
        """
        images = chain_input(images)
        for name, chain in self.chains.items():
            view_spec = self._view_specs[name]
            geometry = Draws(self.seed, epoch, view_spec.geometry, ids) if view_spec.geometry else None
            chain.diagnose(images, Draws(self.seed, epoch, view_spec.key, ids), geometry)  # type: ignore[operator]

    @torch.no_grad()
    def forward(
        self,
        images: Tensor | ViewPixels,
        ids: Tensor,
        epoch: int,
        *,
        teacher: bool = True,
        student: bool = True,
        view_keys: Tensor | None = None,
    ) -> Views:
        """The views of a batch.

        Args:
            images: [B, C, H, W] uint8 or uint16 (or floats in [0, 1]); the views are made on their device. Or what
                :meth:`render` made of them: the same views, within the rounding to an integer.
            ids: [B] int64, see :func:`augment.draws.sample_key`. Best on the CPU: copying them to a GPU does not
                synchronize, but mixing and kornia's own code need them on the CPU, and copying them back does.
            epoch: number of the epoch.
            teacher: whether to make the teacher's views; False: ``views.teacher`` is empty, the student's are the same.
            student: whether to make the student's views; False: ``views.student`` is empty, the teacher's are the same.
            view_keys: [B] int64 on the CPU. A sample with a key of 0 or more gets the views of the seed ``key`` and the
                epoch 0, whatever this seed and epoch are; so a view is repeated in another training. None: no sample.

        Returns:
            Normalized views, [B, C, h, w] each; mixed if ``settings.mix`` is set.
        """
        made: dict[tuple[str, InputSpec | None], Tensor] = {}
        if isinstance(images, Mapping):
            made = {(name, None): to_unit(pixels) for name, pixels in images.items()}
        else:
            images = chain_input(images)
        batch = next(iter(images.values())) if isinstance(images, Mapping) else images
        channels = len(self.student.mean)
        if batch.ndim != 4 or batch.shape[1] != channels or not len(batch):
            raise ValueError(f"images must be [B, {channels}, H, W] with B > 0, not {list(batch.shape)}")
        if ids.shape != batch.shape[:1]:
            raise ValueError(f"{len(batch)} images need ids [{len(batch)}], not {list(ids.shape)}")

        def view(view_spec: ViewSpec, spec: InputSpec) -> Tensor:
            # Networks of one size share a view's pixels; networks of one InputSpec share the normalized view.
            name = _chain_name(view_spec, view_spec.size or spec.size)
            if (name, spec) in made:
                return made[name, spec]
            if (name, None) in made:
                made[name, spec] = normalized(made[name, None], spec)
            elif isinstance(images, Mapping):
                raise ValueError(f"the view {name!r} is missing among the rendered views")
            elif self._specs[name] == {spec}:  # no other network needs the pixels: the chain's last write normalizes
                made[name, spec] = self._pixels(name, batch, ids, epoch, spec, view_keys)
            else:
                made[name, None] = self._pixels(name, batch, ids, epoch, view_keys=view_keys)
                made[name, spec] = normalized(made[name, None], spec)
            return made[name, spec]

        # Autocast would warp on a bf16 grid.
        with torch.autocast(batch.device.type, enabled=False):
            teacher_views = [
                tuple(view(view_spec, spec) for view_spec in self.view_plan.teacher)
                for spec in self.teachers
                if teacher
            ]
            student_views = [view(view_spec, self.student) for view_spec in self.view_plan.student if student]
        views = Views(tuple(teacher_views), tuple(student_views), self.view_plan.pairs)
        return mixed(views, self.mix, self.seed, epoch, ids.cpu()) if self.mix else views


def chain_input(images: Tensor) -> Tensor:
    """Images of 16 bits as floats in [0, 1], which lose no bit; others as they are, for the chains' first pass."""
    return to_unit(images) if images.dtype == torch.uint16 else images


def _chain_name(view_spec: ViewSpec, size: tuple[int, int]) -> str:
    return f"{view_spec.key} {size[0]}x{size[1]}"


def _check_domains(teachers: Sequence[InputSpec], student: InputSpec) -> None:
    for spec in teachers:
        if (len(spec.mean), spec.bounded) != (len(student.mean), student.bounded):
            raise ValueError(
                f"teacher and student get the same images, but expect different kinds: {spec} and {student}"
            )


def _check_sizes(plan: ViewPlan, teachers: Sequence[InputSpec], student: InputSpec) -> None:
    """Refuse a crop of the network's own size if networks of different sizes should see the same part of the image."""
    sizes = {spec.size for spec in (*teachers, student)}
    shared = {view_spec.key for view_spec in plan.teacher} & {view_spec.key for view_spec in plan.student}
    for view_spec in (*plan.teacher, *plan.student):
        for op in (leaf for given in view_spec.recipe for leaf in given.leaves):
            bound = op.type not in FREE_OF_SIZE and op.follows_network_size and op.geometric
            if bound and len(sizes) > 1 and (view_spec.key in shared or view_spec.geometry):
                raise ValueError(
                    f"{op.type} needs its argument 'size': the networks' input sizes differ ({sorted(sizes)}), "
                    "so by default they would see different parts of the image"
                )
