"""Parameter groups, optimizer and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distill.training.lars import Lars
from distill.training.layer_decay import layer_scales
from distill.training.settings import OptimizerSettings, ScheduleSettings


def exempt_from_decay(root: nn.Module) -> set[int]:
    """Python ids of the parameters that modules list in ``no_weight_decay`` by their names, as timm's models do."""
    exempt: set[int] = set()
    for module in root.modules():
        declared = getattr(module, "no_weight_decay", ())
        names = declared() if callable(declared) else declared
        exempt |= {id(p) for name, p in module.named_parameters() if name in names} if names else set()
    return exempt


def parameter_groups(
    root: nn.Module, head: list[nn.Module], settings: OptimizerSettings, model: nn.Module | None = None
) -> list[dict[str, object]]:
    """The trainable parameters, grouped by learning rate and by whether they have weight decay.

    Matrices and kernels have weight decay, vectors only with ``decay: all``, and parameters in ``no_weight_decay``
    never.

    Args:
        root: holds all parameters.
        head: modules whose learning rate is multiplied by ``head_lr_factor``.
        settings: learning rate, weight decay.
        model: the timm model in ``root`` whose layers have ``layer_decay``; None: no layer decay.

    Returns:
        Parameter groups of a torch optimizer, with ``params`` in module order, ``weight_decay``, ``lr``, and
        ``lr_scale``, the factor by which layer decay and head differ from the learning rate of the settings.

    Raises:
        ValueError: ``layer_decay`` for a model that does not declare the order of its layers.
    """
    scales: dict[int, float] = {}
    if settings.layer_decay is not None and model is not None:
        scales = layer_scales(model, settings.layer_decay)
    head_parameters = {id(p) for module in head for p in module.parameters()}
    exempt = exempt_from_decay(root)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in root.parameters():
        if parameter.requires_grad:
            decaying = (parameter.ndim > 1 or settings.decay == "all") and id(parameter) not in exempt
            factor = settings.head_lr_factor if id(parameter) in head_parameters else 1.0
            groups.setdefault((factor * scales.get(id(parameter), 1.0), decaying), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decaying else 0.0,
            "lr": settings.lr * scale,
            "lr_scale": scale,
        }
        for (scale, decaying), parameters in groups.items()
    ]


def build_optimizer(
    root: nn.Module, head: list[nn.Module], settings: OptimizerSettings, model: nn.Module | None = None
) -> Optimizer:
    """AdamW, SGD or LARS, fused: the kernels read the flag by which :mod:`distill.training.guard` skips an update.

    Args:
        root: holds all parameters.
        head: modules whose learning rate is multiplied by ``head_lr_factor``.
        settings: type and hyper-parameters.
        model: the timm model in ``root`` whose layers have ``layer_decay``; None: no layer decay.

    Returns:
        The optimizer of all trainable parameters.

    Raises:
        ValueError: there are none, or ``layer_decay`` for a model that does not declare the order of its layers.
    """
    groups = parameter_groups(root, head, settings, model)
    if not groups:
        raise ValueError("nothing to train: the student has neither deltas nor a head with gradients")
    if settings.type == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    nesterov = settings.nesterov and settings.momentum > 0
    if settings.type == "lars":
        own = {"lr": settings.lr, "momentum": settings.momentum, "nesterov": nesterov}
        return Lars(groups, trust=settings.trust, clip=settings.trust_clip, **own)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)


def build_schedule(optimizer: Optimizer, settings: ScheduleSettings, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """The schedule as a factor on each group's learning rate, stepped once per update.

    Args:
        optimizer: whose groups have their peak rates.
        settings: warm-up and shape.
        epochs: length of the training.
        steps_per_epoch: updates in an epoch.

    Returns:
        The scheduler.
    """
    return LambdaLR(optimizer, lambda step: lr_factor(step / steps_per_epoch, epochs, settings))


def lr_factor(epoch: float, epochs: int, settings: ScheduleSettings) -> float:
    """Factor on the peak learning rate at a fractional epoch.

    Warm-up rises linearly from one hundredth of the peak; cosine falls from 1 to ``final`` over the epochs after it.

    Args:
        epoch: from the start of the training, with fractions.
        epochs: length of the training.
        settings: warm-up and shape.

    Returns:
        The factor, in [0, 1].
    """
    if epoch < settings.warmup:
        return max(0.01, epoch / settings.warmup)
    if settings.type == "constant":
        return 1.0
    if settings.type == "steps":
        return settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones)
    progress = min(1.0, (epoch - settings.warmup) / (epochs - settings.warmup))
    return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * progress))
