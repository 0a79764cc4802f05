"""Runs a :class:`distill.training.step.DistillationStep` in Lightning's training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from augment.fuse.compiler import missing_compiler
from augment.placement import to_device
from distill.data.reader import Batch
from distill.models.fingerprint import fingerprint
from distill.models.student import head_modules
from distill.models.weights import NetworkError, check_fits
from distill.objectives.base import Schedule
from distill.objectives.ranks import sum_over_ranks, world_size
from distill.training.ema import WeightAverage
from distill.training.guard import LossGuard
from distill.training.optimizer import build_optimizer, build_schedule
from distill.training.step import DistillationStep
from distill.training.timer import StepTimer
from distill.training.trunk import share_trunk


class Distillation(LightningModule):
    """A :class:`DistillationStep` with Lightning's hooks: transfer, clipping, optimizer, timing, checkpoint.

    Nothing here waits for the device: metrics are summed on it and read every ``log_every`` steps.

    Args:
        step: computes the loss of a batch; ``step.settings`` configures the hooks too.
    """

    _sums: Tensor

    def __init__(self, step: DistillationStep):
        super().__init__()
        self.step = step
        self.note = ""
        """One line about the computation that networks share, for the console; empty if they share none."""
        settings = step.settings
        self.guard = LossGuard(step.term_names, settings.spike)
        self.average = WeightAverage(step.student, settings.ema) if settings.ema else None
        # Loss, gradient norm, then each term: sums over the steps since the last reading.
        self.register_buffer("_sums", torch.zeros(2 + len(step.term_names)), persistent=False)
        self._steps_summed = 0
        # Loss and terms: sums over the batches since the last update.
        self._batch_sums: Tensor | None = None
        self._batches_summed = 0
        self._batch_index = 0
        self._resumed_gradients: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        step = self.step
        step.watch_parameters()
        step.clock = StepTimer(self.device)
        if self.average is not None:
            self.average.to(self.device)
        self.train()  # Lightning does not change the mode; frozen modules ignore train() and stay in eval mode
        step.trunk, self.note = share_trunk(step.student, step.teacher, step.augment, step.settings.precision)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Restore the gradients of a checkpoint between the batches of an update; Lightning clears them before."""
        for name, gradient in self._resumed_gradients.items():
            parameter = self.get_parameter(name)
            parameter.grad = gradient.to(parameter.device)
        self._resumed_gradients = {}

    @contextmanager
    def as_result(self) -> Iterator[None]:
        """Within it, the student is what the fit would save now: the average of the weights, stored as settings say."""
        with ExitStack() as stack:
            if self.average is not None:
                stack.enter_context(self.average.in_place())
            if (quantization := self.step.quantization) is not None:
                stack.enter_context(quantization.as_stored(self.global_step - 1))
            yield

    @property
    def compiled_parts(self) -> list[str]:
        """What torch.compile compiles in the first step. (The C passes of a CPU take only a second.)"""
        step, settings = self.step, self.step.augment.settings
        networks = {"the student": step.student, "the teacher": step.teacher}
        parts = [name for name, network in networks.items() if network is not None and network.compiled]
        device = self.device.type
        if device != "cpu" and settings.compile and settings.engine == "fused" and not missing_compiler(device):
            parts.append("the augmentation")
        return parts

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Move images, labels and view pixels; ids stay on the CPU, where the draws are computed.

        Args:
            batch: images [B, 3, H, W], labels [B], ids [B]; on the loader's device.
            device: the fit's.
            index: Lightning's number of the data loader; not used.

        Returns:
            The batch, with all but the ids on ``device``.
        """
        images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        view_pixels = batch.view_pixels and to_device(batch.view_pixels, device)
        batch = batch._replace(images=images, labels=labels, view_pixels=view_pixels)
        memory = {name: getattr(batch, name) for name in ("is_memory", "stored_logits")}
        return batch._replace(**{name: t.to(device, non_blocking=True) for name, t in memory.items() if t is not None})

    @property
    def mid_update(self) -> bool:
        """Whether gradients of batches are accumulated for an update that has not been made yet."""
        return self._batches_summed > 0

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        output = self.step(
            batch.pixels,
            batch.ids,
            batch.labels,
            epoch=self.current_epoch,
            step=self.global_step,
            first_of_update=not self.mid_update,
            is_memory=batch.is_memory,
            stored_logits=batch.stored_logits,
            view_keys=batch.view_keys,
            domains=batch.domains,
        )
        metrics = torch.cat([output.loss.detach().reshape(1), output.terms])
        self._batch_sums = metrics if self._batch_sums is None else self._batch_sums + metrics
        self._batches_summed += 1
        self._batch_index = batch_index
        return output.loss

    def backward(self, loss: Tensor, *arguments: Any, **more: Any) -> None:
        """Accumulate the gradient of a batch's loss, which Lightning has divided by ``training.accumulate``.

        The last update of an epoch may have fewer batches; they are averaged too.

        Args:
            loss: of the batch, divided.
            arguments: passed on to ``loss.backward``.
            more: as ``arguments``, by name.
        """
        accumulate = self.step.settings.accumulate
        first = self._batch_index - self._batch_index % accumulate
        batches = min(accumulate, int(self.trainer.num_training_batches) - first)
        super().backward(loss if batches == accumulate else loss * (accumulate / batches), *arguments, **more)

    def on_train_epoch_end(self) -> None:
        if self.step.cache is not None:
            self.step.cache.flush()

    def _now(self) -> tuple[int, int, int]:
        return self.global_step, self.step.steps_per_epoch, self.step.settings.epochs

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        """Update the parameters, then run the hooks of deltas and terms that follow an update."""
        super().optimizer_step(*arguments, **more)
        self.step.after_update(self.global_step)

    def configure_gradient_clipping(self, optimizer: Any, *unused: Any, **also_unused: Any) -> None:
        """Clip the gradient, add up the step's metrics, and set the flag by which the fused optimizer skips an update.

        Args:
            optimizer: Lightning's wrapper of a fused torch optimizer, or the torch optimizer itself.
            unused: Lightning's further arguments; ``training.clip_norm`` is the only limit.
            also_unused: as ``unused``, by name.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        self.step.keep_gradients()
        if self.step.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.step.settings.clip_norm, norm)
        assert self._batch_sums is not None
        metrics = self._batch_sums / self._batches_summed
        self._batch_sums, self._batches_summed = None, 0
        if world_size() > 1:
            metrics = sum_over_ranks(metrics) / world_size()
        loss, terms = metrics[0], metrics[1:]
        found_inf = self.guard.watch(self.global_step, loss, terms, norm)
        # The kernels of the wrapped torch optimizer read the flag.
        getattr(optimizer, "optimizer", optimizer).found_inf = found_inf
        self._sums += torch.cat([loss.reshape(1), norm.reshape(1), terms])
        self._steps_summed += 1

    def read_metrics(self) -> dict[str, float]:
        """Means since the last reading: ``loss``, ``gradient_norm``, ``loss/<term>``. Waits for the device.

        Current values: ``weight/<term>`` of each term with a schedule, ``teacher_weight/<n>`` of each network unless
        the weights are fixed, and ``delta/<type>/<name>``, the mean of ``Delta.metrics`` over the deltas of a type.
        """
        if self._steps_summed == 0:
            return {}
        means = (self._sums / self._steps_summed).tolist()
        self._sums.zero_()
        self._steps_summed = 0
        names = ["loss", "gradient_norm", *(f"loss/{name}" for name in self.guard.terms[:-1])]
        weighting = self.step.teacher_weights
        teacher_weights = weighting.metrics() if weighting is not None else {}
        weights_now = {name: float(weight) for name, weight in teacher_weights.items()}
        return dict(zip(names, means)) | self._scheduled_weights() | weights_now | self._delta_metrics()

    def _scheduled_weights(self) -> dict[str, float]:
        return {
            f"weight/{term.name}": term.weight(*self._now())
            for term in self.step.terms
            if term.settings.schedule != Schedule()
        }

    def _delta_metrics(self) -> dict[str, float]:
        by_name: dict[str, list[Tensor]] = {}
        for site in self.step.student.sites:
            for name, value in site.delta.metrics().items():
                by_name.setdefault(f"delta/{site.delta.settings.type}/{name}", []).append(value)
        return {name: float(torch.stack(values).mean()) for name, values in by_name.items()}

    def configure_optimizers(self) -> Any:
        step, settings = self.step, self.step.settings
        root = nn.ModuleList([step.student, step.terms])  # type: ignore[list-item]
        model = step.student.model
        optimizer = build_optimizer(root, head_modules(model), settings.optimizer, model)
        schedule = build_schedule(optimizer, settings.schedule, settings.epochs, step.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes: of student, objectives, guard, and of what follows the student."""
        own = {f"step.student.{key}": value for key, value in self.step.student.own_state().items()}
        if self.step.momentum is not None:
            own |= {f"step.momentum.{key}": value for key, value in self.step.momentum.own_state().items()}
        rest = {
            key: value
            for key, value in self.state_dict().items()
            if key.startswith(("step.terms.", "step.teacher_weights.", "step.quantization.", "guard."))
        }
        return own | rest

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Network → SHA-256 of its weights, for the frozen networks, which checkpoints do not hold."""
        student, teacher = self.step.student, self.step.teacher
        hashes = {} if student.full else {"student's backbone": student.backbone.sha256}
        return hashes if teacher is None else {**hashes, "teacher": fingerprint(teacher.state_dict()).sha256}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.trained_state()
        checkpoint["frozen"] = self.frozen
        checkpoint["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        if self.average is not None:
            checkpoint["average"] = self.average.state()
        checkpoint["regularizers"] = {name: own.state_dict() for name, own in self.step.regularizers.items()}
        if self._batch_sums is not None:
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            metrics = {"metrics": self._batch_sums, "batches": self._batches_summed}
            checkpoint["accumulated"] = {"gradients": gradients, **metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        check_fits(self.trained_state(), state, "the checkpoint")
        for name, sha256 in self.frozen.items():
            if checkpoint["frozen"].get(name) != sha256:
                raise NetworkError(f"the weights of the {name} are not those that the checkpoint was trained with")
        # Lightning loads strictly; the file lacks the frozen tensors, so they are added from this module.
        checkpoint["state_dict"] = self.state_dict() | state
        torch.set_rng_state(checkpoint["rng"])
        if "cuda_rng" in checkpoint and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["cuda_rng"], self.device)
        if self.average is not None:
            self.average.load(checkpoint["average"])
        for name, own in self.step.regularizers.items():
            own.load_state_dict(checkpoint["regularizers"][name])
        if (accumulated := checkpoint.get("accumulated")) is not None:
            self._batch_sums = accumulated["metrics"].to(self._sums.device)
            self._batches_summed = accumulated["batches"]
            self._resumed_gradients = accumulated["gradients"]
