"""Tries a fit: the views, one training step and its update, on one small batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from augment.placement import LoaderViews
from distill.models.student import Student, head_modules
from distill.run.stage import StageError
from distill.run.trial import Trial, trying
from distill.training.optimizer import build_optimizer

if TYPE_CHECKING:
    from distill.run.fit_spec import FitSpec

LARGEST_LR = 1e-3
"""A single step at the start of training, without warm-up, must not make the weights useless for the next checks."""


def try_fit(spec: FitSpec, student: Student, trial: Trial, name: str) -> None:
    """Make one training step on one small batch.

    Args:
        spec: of the fit; the teacher's cache is not used.
        student: is changed by the step; on the CPU before and after.
        trial: number of images.
        name: of the fit, for errors.

    Raises:
        StageError: something fails, or views, loss or gradients are not finite.
    """
    context = spec.context
    loader = spec.loader()
    module = replace(spec, cache=None).module(student, loader, name)
    step, device = module.step, context.device
    batch = context.data.train_batch(0, 0, labeled_only=spec.labeled_only, images=2 * trial.images)
    with trying(f"{name}: making the views of {len(batch.ids)} training images"):
        step.augment.to(device).diagnose(batch.images.to(device), batch.ids, 0)
        if spec.augment.placement == "loader":
            batch = batch._replace(view_pixels=LoaderViews(step.augment)(batch.images, batch.ids, 0, batch.view_keys))
    with trying(f"{name}: one training step on {len(batch.ids)} images"):
        module.to(device).train()
        step.watch_parameters()
        if step.quantization is not None:
            step.quantization.begin_now()
        batch = module.transfer_batch_to_device(batch, device, 0)
        root = nn.ModuleList([student, step.terms])  # type: ignore[list-item]
        optimizer = build_optimizer(root, head_modules(student.model), spec.training.optimizer)
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.training.precision == "bfloat16"):
            output = step(
                batch.pixels,
                batch.ids,
                batch.labels,
                epoch=0,
                step=0,
                is_memory=batch.is_memory,
                stored_logits=batch.stored_logits,
                view_keys=batch.view_keys,
                domains=batch.domains,
            )
        terms = dict(zip(step.term_names, output.terms.tolist()))
        bad = [f"{term} is {value}" for term, value in terms.items() if not torch.tensor(value).isfinite()]
        if bad or not output.loss.isfinite():
            raise StageError(
                f"{name}: the loss of the first step is not finite: {', '.join(bad) or output.loss.item()}"
            )
        output.loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not norm.isfinite():
            raise StageError(f"{name}: the gradient of the first step is not finite")
        for group in optimizer.param_groups:
            group["lr"] = min(group["lr"], LARGEST_LR)
        optimizer.step()
        optimizer.zero_grad()
        step.after_update(0)
    module.cpu()
