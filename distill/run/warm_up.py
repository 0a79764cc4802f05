"""What methods are shown before training: free trainings of the experiment's own lesson, and gradients along them.

In a free training, dense deltas take the place of every entry of ``student.deltas`` that prepares itself, at the same
sites. So a weight that moves freely is W + D, its gradient is D's, and everything else is as it will be in training:
the backbone's other weights and its batch norms stay, the head and the other entries learn. (HALRP trains biases and
norms too; to have that here, list ``bias`` and ``norm_affine`` beside it.)
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

RATE_OF_WEIGHTS = 0.1
"""Default learning rate of free weights over that of deltas, which take larger steps."""


class StudentMaker(Protocol):
    """Makes the students of warm-ups: see :class:`distill.run.prepare.StudentSpec`."""

    @property
    def settings(self) -> StudentSettings: ...

    def build(
        self, inits: Sequence[DeltaInit] | None = None, deltas: tuple[DeltaSettings, ...] | None = None
    ) -> Student: ...


class WarmUp:
    """Warm-ups of one fit; each is run once, in a folder of its own, and resumed like any fit.

    Args:
        spec: makes the student.
        fit_spec: the fit that is warmed up for.
        folder: of the fit.
        name: of the fit, for the console.
        full_epochs: what numbers of epochs refer to; where the fit has fewer, a warm-up has as many fewer.
    """

    def __init__(self, spec: StudentMaker, fit_spec: FitSpec, folder: Path, name: str, full_epochs: int):
        self.spec, self.fit_spec, self.folder, self.name, self.full_epochs = spec, fit_spec, folder, name, full_epochs
        self._points: dict[tuple, WarmUpPoint] = {}

    def backbone(self) -> nn.Module:
        """The network before training, the same every time."""
        return self.spec.build(deltas=()).model

    def point(self, epochs: int, train: Literal["weights", "head"], lr: float | None) -> WarmUpPoint:
        """The student after a warm-up.

        Args:
            epochs: 0 for none.
            train: what learns.
            lr: constant; None: the fit's for the head, a tenth of it for weights.
        """
        known = epochs, train if epochs else "weights", lr if epochs else None
        if known not in self._points:
            self._points[known] = self._reach(epochs, train, lr)
        return self._points[known]

    def _reach(self, epochs: int, train: Literal["weights", "head"], lr: float | None) -> WarmUpPoint:
        name = f"{self.name}: warm-up"
        student = self.spec.build(deltas=tuple(_free_form(entry) for entry in self.spec.settings.deltas))
        if not epochs:
            return WarmUpPoint(self.fit_spec, student, name, None)
        usual = self.fit_spec.training.optimizer.lr
        rate = lr or (usual if train == "head" else RATE_OF_WEIGHTS * usual)
        # Under another number of epochs, as the control has it, a warm-up is the same part of training.
        scaled = max(1, round(epochs * self.fit_spec.training.epochs / self.full_epochs))
        fit_spec = self.fit_spec.free(scaled, rate)
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
    """A student that moved freely, and the loss around it."""

    def __init__(self, fit_spec: FitSpec, student: Student, name: str, folder: Path | None):
        self.fit_spec, self.student, self.name, self.folder = fit_spec, student, name, folder
        self._gradients: dict[int, dict[int, dict[str, Gradients]]] = {}

    def free(self, number: int) -> dict[str, Dense]:
        """Site → the dense delta of an entry."""
        return {site: delta for site, delta in self.student.entries[number].items() if isinstance(delta, Dense)}

    def gradients(self, samples: int) -> dict[int, dict[str, Gradients]]:
        """By entry and site."""
        if samples not in self._gradients:
            self._gradients[samples] = self._gather(samples)
        return self._gradients[samples]

    def _gather(self, samples: int) -> dict[int, dict[str, Gradients]]:
        keys = [(number, site) for number in range(len(self.student.entries)) for site in self.free(number)]
        tensors = [self.free(number)[site].D for number, site in keys]
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
        """``1 − CKA`` of pooled features with one weight of the entry as it was."""
        changes = {}
        with self._module() as module, eval_mode(self.student):
            views = [module.augment(batch.images, batch.ids, 0).student[0] for batch in self._batches(module, samples)]
            whole_ND = self._pooled(views)
            for site, delta in self.free(number).items():
                kept = delta.D.clone()
                delta.D.zero_()
                change = 1 - linear_cka(whole_ND, self._pooled(views))
                delta.D.copy_(kept)
                changes[site] = float(change)
        return changes

    def _pooled(self, views: list[Tensor]) -> Tensor:
        """Of the views of all ranks, since a CKA of each one's share would be another number."""
        values = [extract(self.student.model, view, frozenset({"pooled"})).pooled for view in views]
        return gather_batch(torch.cat([pooled for pooled in values if pooled is not None]).double())

    @contextmanager
    def _module(self) -> Iterator[Distillation]:
        """The training step at this point, on the device; the objectives' own parameters as training left them."""
        loader = self.fit_spec.loader()
        module = self.fit_spec.module(self.student, loader, self.name)
        loader.close()
        if self.folder is not None:
            path = newest_good(self.folder)
            if path is None:
                raise CheckpointError(f"{self.folder}: the checkpoints of this warm-up are gone; delete the folder")
            state = VerifiedCheckpointIO().load_checkpoint(path)["state_dict"]
            terms = {name: tensor for name, tensor in state.items() if name.startswith("terms.")}
            module.load_state_dict(terms, strict=False)
        module.to(self.fit_spec.context.device)
        try:
            yield module
        finally:
            module.cpu()

    def _batches(self, module: Distillation, samples: int) -> Iterator:
        """Batches of the first epoch: this rank's share once the ranks are connected, all of it before."""
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
    """An entry's view of the free trainings: see ``distill.deltas.base.Calibration``."""

    def __init__(self, training: WarmUp, number: int):
        self.training, self.number = training, number

    @cached_property
    def backbone(self) -> nn.Module:
        return self.training.backbone()

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        sites = self.training.point(0, "weights", None).free(self.number)
        return {site: layer_at(self.backbone, find_target(self.backbone, site)) for site in sites}

    def after(
        self, epochs: int, train: Literal["weights", "head"] = "weights", lr: float | None = None
    ) -> StudentCalibrationStats:
        return StudentCalibrationStats(self, self.training.point(epochs, train, lr))


class StudentCalibrationStats:
    """An entry's view of one point: see ``distill.deltas.base.CalibrationStats``."""

    def __init__(self, calibration: StudentCalibration, point: WarmUpPoint):
        self.calibration, self.point, self.student = calibration, point, point.student

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        free = self.point.free(self.calibration.number)
        layers = self.calibration.layers
        return {site: (layers[site].weight + delta.D.cpu()).detach() for site, delta in free.items()}  # type: ignore

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


def _free_form(entry: DeltaSettings) -> DeltaSettings:
    """Dense deltas at the sites of an entry that prepares itself; any other entry as it is."""
    method = entry.component
    if issubclass(method, StructuralDelta) and method.prepares(entry):  # type: ignore[arg-type, union-attr]
        return Dense.Settings()
    if issubclass(method, WeightDelta) and method.prepares(entry):  # type: ignore[arg-type, union-attr]
        kinds = tuple(kind for kind in entry.kinds or sorted(method.kinds) if kind in Dense.kinds)  # type: ignore
        return Dense.Settings(sites=entry.sites, exclude=entry.exclude, kinds=kinds)
    return entry


@contextmanager
def _input_squares(model: nn.Module, names: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Layer name → the mean square of its input, call by call."""
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
