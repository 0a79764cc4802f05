"""Warm-ups: short trainings whose weights and gradients a method of deltas prepares itself by.

Some entries of ``student.deltas`` choose ranks, masks or initial values from data before training. A warm-up trains the
student's weights freely: dense deltas D take the place of such entries, at the same sites. A weight is then W + D, and
its gradient is that of D. Everything else is as in the training that follows, with the same data, objectives and
teacher: the other weights of the backbone and its batch norms are frozen, the head and the other entries learn. (HALRP
also trains biases and norms; for that, list ``bias`` and ``norm_affine`` beside it.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from distill.data.experiment_data import ExperimentData
from distill.deltas.attach import layer_at
from distill.deltas.base import DeltaInit, DeltaSettings, Gradients, StructuralDelta, WeightDelta
from distill.deltas.blocks import eval_mode
from distill.deltas.dense import Dense
from distill.deltas.sites import classifier_names, find_target
from distill.deltas.state import head_state, load_exactly
from distill.models.network import extract
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.objectives.ranks import gather_batch, sum_over_ranks, world_size
from distill.run.fit_spec import FitSpec
from distill.training.checkpoints import CheckpointError, VerifiedCheckpointIO, newest_good
from distill.training.module import Distillation
from distill.training.signals import Interrupted

WEIGHTS_LR_SCALE = 0.1
"""Default learning rate of a warm-up's dense deltas, as a fraction of the fit's, whose deltas take larger steps."""


class StudentMaker(Protocol):
    """Builds the students of warm-ups; :class:`distill.run.prepare.StudentSpec` is one."""

    @property
    def settings(self) -> StudentSettings: ...

    def build(
        self, inits: Sequence[DeltaInit] | None = None, deltas: tuple[DeltaSettings, ...] | None = None
    ) -> Student: ...


class WarmUp:
    """The warm-ups of one fit. Each runs once, in its own folder, and is resumed like any fit.

    Args:
        spec: builds the student.
        fit_spec: the fit that the warm-ups precede.
        folder: of the fit.
        name: of the fit, for the console.
        full_epochs: the number of epochs for which ``warm_up`` is given; a fit of another number scales it.
    """

    def __init__(self, spec: StudentMaker, fit_spec: FitSpec, folder: Path, name: str, full_epochs: int):
        self.spec, self.fit_spec, self.folder, self.name, self.full_epochs = spec, fit_spec, folder, name, full_epochs
        self._points: dict[tuple, WarmUpPoint] = {}

    def backbone(self) -> nn.Module:
        """The network before training: equal weights at every call."""
        return self.spec.build(deltas=()).model

    def point(self, epochs: int, train: Literal["weights", "head"], lr: float | None) -> WarmUpPoint:
        """The student after a warm-up.

        Args:
            epochs: of the warm-up; 0: the student before any training.
            train: whether the weights, as dense deltas, or the head alone learn.
            lr: the constant learning rate; None: that of the fit for the head, a tenth of it for the weights.

        Returns:
            The student with dense deltas. Equal arguments return the same point.
        """
        known = epochs, train if epochs else "weights", lr if epochs else None
        if known not in self._points:
            self._points[known] = self._reach(epochs, train, lr)
        return self._points[known]

    def _reach(self, epochs: int, train: Literal["weights", "head"], lr: float | None) -> WarmUpPoint:
        name = f"{self.name}: warm-up"
        student = self.spec.build(deltas=tuple(_dense_in_place_of(entry) for entry in self.spec.settings.deltas))
        if not epochs:
            return WarmUpPoint(self.fit_spec, student, name, None)
        usual = self.fit_spec.training.optimizer.lr
        rate = lr or (usual if train == "head" else WEIGHTS_LR_SCALE * usual)
        # A fit of another number of epochs, such as the control, has a warm-up of the same fraction of its training.
        scaled = max(1, round(epochs * self.fit_spec.training.epochs / self.full_epochs))
        fit_spec = self.fit_spec.for_warm_up(scaled, rate)
        folder = self.folder / f"warm-up-{train}-{epochs}-{rate:g}"
        if train == "weights":
            fit_spec.fit(student, folder, name)
        else:
            alone = self.spec.build(deltas=())
            fit_spec.fit(alone, folder, name)
            heads = [head_state(model, classifier_names(model)) for model in (student.model, alone.model)]
            load_exactly(heads[0], heads[1], "head")
        return WarmUpPoint(self.fit_spec, student, name, folder)


class WarmUpPoint:
    """A student after a warm-up, with the gradients of its loss there."""

    def __init__(self, fit_spec: FitSpec, student: Student, name: str, folder: Path | None):
        self.fit_spec, self.student, self.name, self.folder = fit_spec, student, name, folder
        self._gradients: dict[int, dict[int, dict[str, Gradients]]] = {}

    def dense_deltas(self, number: int) -> dict[str, Dense]:
        """Site → dense delta, for entry ``number`` of ``student.deltas``."""
        return {site: delta for site, delta in self.student.entries[number].items() if isinstance(delta, Dense)}

    def gradients(self, samples: int) -> dict[int, dict[str, Gradients]]:
        """Mean and mean square of each dense delta's gradient, over the batches of the first ``samples`` samples.

        Returns:
            Number of the entry → site → gradients, on the CPU.
        """
        if samples not in self._gradients:
            self._gradients[samples] = self._gather(samples)
        return self._gradients[samples]

    def _gather(self, samples: int) -> dict[int, dict[str, Gradients]]:
        keys = [(number, site) for number in range(len(self.student.entries)) for site in self.dense_deltas(number)]
        tensors = [self.dense_deltas(number)[site].D for number, site in keys]
        layers = {site: find_target(self.student.model, site).layer for _, site in keys}
        with self._module() as module, _input_squares(self.student.model, set(layers.values())) as inputs:
            mean = [torch.zeros_like(tensor) for tensor in tensors]
            square = [torch.zeros_like(tensor) for tensor in tensors]
            batches = 0
            for batches, batch in enumerate(self._batches(module, samples), start=1):  # noqa: B007
                loss = module.training_step(batch, 0)
                values = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
                for total, total_square, g in zip(mean, square, values):
                    g = sum_over_ranks(g) / world_size()
                    total += g
                    total_square += g.square()
            scale = 1 / batches
            gathered: dict[int, dict[str, Gradients]] = {number: {} for number, _ in keys}
            for (number, site), g, g2 in zip(keys, mean, square):
                of_input = float(sum_over_ranks(torch.stack(inputs[layers[site]]).mean()) / world_size())
                gathered[number][site] = Gradients((g * scale).cpu(), (g2 * scale).cpu(), of_input)
        return gathered

    @torch.no_grad()
    def feature_change(self, number: int, samples: int) -> dict[str, float]:
        """Site → ``1 − CKA`` between the pooled features, and those with this site's dense delta set to zero."""
        changes = {}
        with self._module() as module, eval_mode(self.student):
            views = [
                module.step.augment(batch.images, batch.ids, 0).student[0] for batch in self._batches(module, samples)
            ]
            whole_ND = self._pooled(views)
            for site, delta in self.dense_deltas(number).items():
                kept = delta.D.clone()
                delta.D.zero_()
                change = 1 - linear_cka(whole_ND, self._pooled(views))
                delta.D.copy_(kept)
                changes[site] = float(change)
        return changes

    def _pooled(self, views: list[Tensor]) -> Tensor:
        """Pooled features [N, C] of the views of all ranks: CKA does not average over ranks."""
        values = [extract(self.student.model, view, frozenset({"pooled"})).pooled for view in views]
        return gather_batch(torch.cat([pooled for pooled in values if pooled is not None]).double())

    @contextmanager
    def _module(self) -> Iterator[Distillation]:
        """The training step of this student, on the device; its objectives keep the warm-up's parameters."""
        loader = self.fit_spec.loader()
        module = self.fit_spec.module(self.student, loader, self.name)
        loader.close()
        if self.folder is not None:
            path = newest_good(self.folder)
            if path is None:
                raise CheckpointError(f"{self.folder}: the checkpoints of this warm-up are gone; delete the folder")
            state = VerifiedCheckpointIO().load_checkpoint(path)["state_dict"]
            terms = {name: tensor for name, tensor in state.items() if name.startswith("step.terms.")}
            module.load_state_dict(terms, strict=False)
        module.to(self.fit_spec.context.device)
        try:
            yield module
        finally:
            module.cpu()

    def _batches(self, module: Distillation, samples: int) -> Iterator:
        """Batches of the first epoch: this rank's part once the ranks are connected, the whole batches before."""
        context = self.fit_spec.context
        alone = context.data.world_size > 1 and not context.connected
        data = (
            ExperimentData(context.data.settings, context.data.seed, device=context.data.device)
            if alone
            else context.data
        )
        loader = data.train_loader(labeled_only=self.fit_spec.labeled_only)
        seen = 0
        try:
            for batch, _ in zip(loader, range(len(loader))):
                if (number := context.stop.agreed()) is not None:
                    raise Interrupted(number)
                yield module.transfer_batch_to_device(batch, context.device, 0)
                seen += len(batch.ids) * (1 if alone else context.data.world_size)
                if seen >= samples:
                    break
        finally:
            loader.close()


class StudentCalibration:
    """The warm-ups as one entry of ``student.deltas`` sees them: a ``distill.deltas.base.Calibration``."""

    def __init__(self, warm_up: WarmUp, number: int):
        self.warm_up, self.number = warm_up, number

    @cached_property
    def backbone(self) -> nn.Module:
        return self.warm_up.backbone()

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        sites = self.warm_up.point(0, "weights", None).dense_deltas(self.number)
        return {site: layer_at(self.backbone, find_target(self.backbone, site)) for site in sites}

    def after(
        self, epochs: int, train: Literal["weights", "head"] = "weights", lr: float | None = None
    ) -> StudentCalibrationStats:
        """The statistics after a warm-up.

        Args:
            epochs: as in :meth:`WarmUp.point`.
            train: as there.
            lr: as there.

        Returns:
            Weights, gradients and changes of features at the sites of this entry.
        """
        return StudentCalibrationStats(self, self.warm_up.point(epochs, train, lr))


class StudentCalibrationStats:
    """One point as one entry sees it: a ``distill.deltas.base.CalibrationStats``."""

    def __init__(self, calibration: StudentCalibration, point: WarmUpPoint):
        self.calibration, self.point, self.student = calibration, point, point.student

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        dense = self.point.dense_deltas(self.calibration.number)
        layers = self.calibration.layers
        return {site: (layers[site].weight + delta.D.cpu()).detach() for site, delta in dense.items()}  # type: ignore

    def gradients(self, samples: int) -> Mapping[str, Gradients]:
        return self.point.gradients(samples)[self.calibration.number]

    def feature_change(self, samples: int) -> Mapping[str, float]:
        return self.point.feature_change(self.calibration.number, samples)


def linear_cka(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Centered kernel alignment of two sets of features of the same samples, in [0, 1] (Kornblith et al.,
    arXiv 1905.00414): ``‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)``, columns centered. 1 where both are constant."""
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    K, L = x_ND @ x_ND.T, y_ND @ y_ND.T
    scale = K.norm() * L.norm()
    return torch.where(scale > 0, (K * L).sum() / scale.clamp_min(torch.finfo(scale.dtype).tiny), 1.0)


def _dense_in_place_of(entry: DeltaSettings) -> DeltaSettings:
    """Dense deltas at the sites of an entry that prepares itself; other entries stay as they are."""
    method = entry.component
    if issubclass(method, StructuralDelta) and method.prepares(entry):  # type: ignore[arg-type, union-attr]
        return Dense.Settings()
    if issubclass(method, WeightDelta) and method.prepares(entry):  # type: ignore[arg-type, union-attr]
        kinds = tuple(kind for kind in entry.kinds or sorted(method.kinds) if kind in Dense.kinds)  # type: ignore
        return Dense.Settings(sites=entry.sites, exclude=entry.exclude, kinds=kinds)
    return entry


@contextmanager
def _input_squares(model: nn.Module, names: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Layer name → the mean squares of its inputs, one for each call."""
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: values[name].append(inputs[0].detach().square().mean())
        )
        for name in names
    ]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()
