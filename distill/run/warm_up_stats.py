"""Statistics of a student after a warm-up: gradients of its loss, and how each dense delta changes its features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.experiment_data import ExperimentData
from distill.deltas.base import Gradients
from distill.deltas.blocks import eval_mode
from distill.deltas.dense import Dense
from distill.deltas.sites import find_target
from distill.models.network import extract
from distill.models.student import Student
from distill.objectives.ranks import gather_batch, sum_over_ranks, world_size
from distill.run.fit_spec import FitSpec
from distill.training.checkpoints import CheckpointError, VerifiedCheckpointIO, newest_good
from distill.training.module import Distillation
from distill.training.signals import Interrupted


class WarmUpPoint:
    """A student after a warm-up, and the statistics of its dense deltas.

    Args:
        fit_spec: the fit that follows; its data, loss and teacher give the gradients.
        student: its entries that choose from data are dense deltas.
        name: of the warm-up, for the console and errors.
        folder: of the warm-up's checkpoints; None: nothing was trained.
    """

    def __init__(self, fit_spec: FitSpec, student: Student, name: str, folder: Path | None):
        self.fit_spec, self.student, self.name, self.folder = fit_spec, student, name, folder
        self._gradients: dict[int, dict[int, dict[str, Gradients]]] = {}

    def dense_deltas(self, number: int) -> dict[str, Dense]:
        """Site → dense delta, for entry ``number`` of ``student.deltas``."""
        return {site: delta for site, delta in self.student.entries[number].items() if isinstance(delta, Dense)}

    def gradients(self, samples: int) -> dict[int, dict[str, Gradients]]:
        """Mean and mean square over batches of each dense delta's gradient; batches of at least ``samples`` samples.

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
        """Site → ``1 − CKA`` of the pooled features with and without the dense delta of this site."""
        changes = {}
        with self._module() as module, eval_mode(self.student):
            batches = self._batches(module, samples)
            views = [module.step.augment(batch.images, batch.ids, 0).student[0] for batch in batches]
            whole_ND = self._pooled(views)
            for site, delta in self.dense_deltas(number).items():
                kept = delta.D.clone()
                delta.D.zero_()
                change = 1 - linear_cka(whole_ND, self._pooled(views))
                delta.D.copy_(kept)
                changes[site] = float(change)
        return changes

    def _pooled(self, views: list[Tensor]) -> Tensor:
        """Pooled features [N, C] of the views of all ranks; CKA of all samples is not the mean of CKA over ranks."""
        values = [extract(self.student.model, view, frozenset({"pooled"})).pooled for view in views]
        return gather_batch(torch.cat([pooled for pooled in values if pooled is not None]).double())

    @contextmanager
    def _module(self) -> Iterator[Distillation]:
        """The training step of this student, on the device, with the objectives' parameters from the warm-up."""
        loader = self.fit_spec.loader()
        module = self.fit_spec.module(self.student, loader, self.name)
        loader.close()
        if self.folder is not None:
            path = newest_good(self.folder)
            if path is None:
                raise CheckpointError(f"{self.folder}: the checkpoints of this warm-up are missing; delete the folder")
            state = VerifiedCheckpointIO().load_checkpoint(path)["state_dict"]
            terms = {name: tensor for name, tensor in state.items() if name.startswith("step.terms.")}
            module.load_state_dict(terms, strict=False)
        module.to(self.fit_spec.context.device)
        try:
            yield module
        finally:
            module.cpu()

    def _batches(self, module: Distillation, samples: int) -> Iterator:
        """Batches of the first epoch: this rank's part of each once the ranks are connected, whole batches before."""
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


def linear_cka(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Linear centered kernel alignment of two sets of features, a scalar in [0, 1]; 1 where either is constant.

    ``‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)`` with centered columns (Kornblith et al., ICML 2019, arXiv 1905.00414); N samples, which
    are the same in both, D features.
    """
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    K, L = x_ND @ x_ND.T, y_ND @ y_ND.T
    scale = K.norm() * L.norm()
    return torch.where(scale > 0, (K * L).sum() / scale.clamp_min(torch.finfo(scale.dtype).tiny), 1.0)


@contextmanager
def _input_squares(model: nn.Module, names: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Layer name → mean square of the layer's input, a scalar for each call within the block."""
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
