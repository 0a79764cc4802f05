"""The training step in Lightning's loop; the step itself is in :mod:`distill.training.step`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from augment.dual import DualAugment
from augment.placement import to_device
from distill.data.reader import Batch
from distill.models.fingerprint import fingerprint
from distill.models.network import NetworkError, check_fits
from distill.models.student import Student, head_modules
from distill.models.teacher import Teacher
from distill.objectives.base import Schedule
from distill.objectives.ranks import sum_over_ranks, world_size
from distill.training.ema import WeightAverage
from distill.training.guard import LossGuard
from distill.training.meta import MetaStep
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.settings import TrainingSettings
from distill.training.step import DistillationStep
from distill.training.teacher_cache import TeacherCache
from distill.training.terms import Term
from distill.training.timer import StepTimer
from distill.training.trunk import share_trunk


class Distillation(DistillationStep, LightningModule):
    """A :class:`DistillationStep` with Lightning's hooks: transfer, clipping, optimizer, timing, checkpoint.

    It takes the step's arguments. Nothing here waits for the device: metrics add up on it and are read every
    ``log_every`` steps.
    """

    _sums: Tensor

    def __init__(
        self,
        student: Student,
        teacher: Teacher | None,
        terms: Sequence[Term],
        augment: DualAugment,
        settings: TrainingSettings,
        steps_per_epoch: int,
        train: tuple[Sequence[str], Tensor] | None = None,
        cache: TeacherCache | None = None,
        meta: MetaStep | None = None,
    ):
        super().__init__(student, teacher, terms, augment, settings, steps_per_epoch, train, cache, meta)
        self.note = ""
        self.guard = LossGuard(self.term_names, settings.spike)
        self.average = WeightAverage(student, settings.ema) if settings.ema else None
        # loss, gradient norm, then one per term: sums over the steps since the last reading.
        self.register_buffer("_sums", torch.zeros(2 + len(self.term_names)), persistent=False)
        self._steps_summed = 0
        self._step_metrics: tuple[Tensor, Tensor] | None = None

    def on_fit_start(self) -> None:
        self.clock = StepTimer(self.device)
        if self.average is not None:
            self.average.to(self.device)
        self.train()  # Lightning leaves modules as they were made; what is frozen sees to its eval mode by itself
        self.trunk, self.note = share_trunk(self.student, self.teacher, self.augment, self.settings.precision)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Images and labels move; ids stay on the CPU, where draws are made: a device would be waited for."""
        images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        view_pixels = batch.view_pixels and to_device(batch.view_pixels, device)
        return batch._replace(images=images, labels=labels, view_pixels=view_pixels)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        output = self(batch.pixels, batch.ids, batch.labels, epoch=self.current_epoch, step=self.global_step)
        self._step_metrics = output.loss.detach(), output.terms
        return output.loss

    def on_train_epoch_end(self) -> None:
        if self.cache is not None:
            self.cache.flush()

    def _now(self) -> tuple[int, int, int]:
        return self.global_step, self.steps_per_epoch, self.settings.epochs

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        """The update, and then what deltas and terms do after one."""
        super().optimizer_step(*arguments, **more)
        self.after_update(self.global_step)

    def configure_gradient_clipping(self, optimizer: Any, *unused: Any, **also_unused: Any) -> None:
        """Clip, take the step's figures in, and tell the fused optimizer whether to leave the update out."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_norm, norm)
        assert self._step_metrics is not None
        metrics = torch.cat([self._step_metrics[0].reshape(1), self._step_metrics[1]])
        if world_size() > 1:
            metrics = sum_over_ranks(metrics) / world_size()
        loss, terms = metrics[0], metrics[1:]
        found_inf = self.guard.watch(self.global_step, loss, terms, norm)
        # The wrapped torch optimizer is the one whose kernels look for the flag.
        getattr(optimizer, "optimizer", optimizer).found_inf = found_inf
        self._sums += torch.cat([loss.reshape(1), norm.reshape(1), terms])
        self._steps_summed += 1

    def read_metrics(self) -> dict[str, float]:
        """Means since the last reading: ``loss``, ``gradient_norm``, ``loss/<term>``. Waits for the device.

        And as they are now: ``weight/<term>`` of terms with a schedule, ``teacher_weight/<n>`` of networks that are
        not weighed the same at every step, and what deltas say of the last one, ``delta/<type>/<name>``, the mean over
        those of a type.
        """
        if self._steps_summed == 0:
            return {}
        means = (self._sums / self._steps_summed).tolist()
        self._sums.zero_()
        self._steps_summed = 0
        names = ["loss", "gradient_norm", *(f"loss/{name}" for name in self.guard.terms[:-1])]
        teacher_weights = self.teacher_weights.metrics() if self.teacher_weights is not None else {}
        weights_now = {name: float(weight) for name, weight in teacher_weights.items()}
        return dict(zip(names, means)) | self._scheduled_weights() | weights_now | self._delta_metrics()

    def _scheduled_weights(self) -> dict[str, float]:
        return {
            f"weight/{term.name}": term.weight(*self._now())
            for term in self.terms
            if term.settings.schedule != Schedule()
        }

    def _delta_metrics(self) -> dict[str, float]:
        by_name: dict[str, list[Tensor]] = {}
        for site in self.student.sites:
            for name, value in site.delta.metrics().items():
                by_name.setdefault(f"delta/{site.delta.settings.type}/{name}", []).append(value)
        return {name: float(torch.stack(values).mean()) for name, values in by_name.items()}

    def configure_optimizers(self) -> Any:
        root = nn.ModuleList([self.student, self.terms])  # type: ignore[list-item]
        optimizer = build_optimizer(root, head_modules(self.student.model), self.settings.optimizer)
        schedule = build_schedule(optimizer, self.settings.schedule, self.settings.epochs, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes: the student's side, the objectives' parameters, the guard's running mean."""
        own = {f"student.{key}": value for key, value in self.student.own_state().items()}
        rest = {
            key: value
            for key, value in self.state_dict().items()
            if key.startswith(("terms.", "guard.", "teacher_weights."))
        }
        return own | rest

    @cached_property
    def frozen(self) -> dict[str, str]:
        """SHA-256 of the networks that are in no checkpoint."""
        teacher = {"teacher": fingerprint(self.teacher.state_dict()).sha256} if self.teacher is not None else {}
        return teacher if self.student.full else {"student's backbone": self.student.backbone.sha256, **teacher}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.trained_state()
        checkpoint["frozen"] = self.frozen
        checkpoint["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        if self.average is not None:
            checkpoint["average"] = self.average.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        check_fits(self.trained_state(), state, "the checkpoint")
        for name, sha256 in self.frozen.items():
            if checkpoint["frozen"].get(name) != sha256:
                raise NetworkError(f"the weights of the {name} are not those that the checkpoint was trained with")
        # Lightning loads strictly; the frozen part is not in the file, so it is filled in from here.
        checkpoint["state_dict"] = self.state_dict() | state
        torch.set_rng_state(checkpoint["rng"])
        if "cuda_rng" in checkpoint and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["cuda_rng"], self.device)
        if self.average is not None:
            self.average.load(checkpoint["average"])
