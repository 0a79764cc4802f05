"""Students and teachers from names or from timm models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from augment.base.settings import Settings
from augment.base.suggestions import did_you_mean
from distill.api.arguments import DELTAS, check_method, checks_names
from distill.deltas.base import DeltaSettings
from distill.models.network import Network, as_network, create_network
from distill.models.settings import AnyDelta, LearningSettings, NetworkSettings
from distill.models.student import Student
from distill.models.teacher import DTYPES, Teacher

DeltaLike = str | Mapping[str, Any] | DeltaSettings
"""``"low_rank"``, ``{"type": "low_rank", "rank": 4}``, or settings."""
FIELDS = ("logits", "pooled", "maps", "token")


@checks_names
def create_student(
    model: str | nn.Module,
    deltas: DeltaLike | Iterable[DeltaLike] = (),
    *,
    num_classes: int | None = None,
    size: int | None = None,
    train: Literal["deltas", "full"] = "deltas",
    pretrained: bool = True,
    checkpoint: Path | str | None = None,
    prefix: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_chans: int | None = None,
    batch_norm: Literal["train", "frozen"] = "train",
    needs: str | Iterable[str] = ("logits",),
    compile: bool = False,
) -> Student:
    """A frozen backbone with deltas on its layers and a trainable head: ``student(view [B, 3, H, W]) → Features``.

    ``student.model`` is the timm model under timm's own names; a parameter is trained if it requires a gradient.

    Args:
        model: a name (``"resnet50.a1_in1k"``, ``"embedded:tf_efficientnet_lite0"``, ``"hf-hub:OWNER/NAME"``,
            ``"local-dir:FOLDER"``), or a timm model, which is frozen and given its deltas in place.
        deltas: names (see :func:`list_deltas`), mappings with ``type`` and settings, or settings; several on one layer
            compose in this order. Empty: only the head is trained.
        num_classes: width of a new, freshly initialized classifier; None keeps the model's own.
        size: height and width of the input in pixels; None: the model's own.
        train: ``"deltas"`` freezes the backbone, ``"full"`` trains every weight and takes no deltas.
        pretrained: whether to load the weights of that name.
        checkpoint: a ``.safetensors`` or weights-only ``.pth`` file to load instead.
        prefix: what the names of the checkpoint's tensors begin with, such as ``"student."``; None: what fits.
        mean: of the input's normalization, by channel, in [0, 1]; None: the model's own.
        std: as ``mean``.
        in_chans: channels of the images, for which timm adapts the first layer; None: the model's own.
        batch_norm: with ``train="full"``: ``"frozen"`` keeps the running statistics.
        needs: which fields of ``Features`` to compute, of ``"logits"``, ``"pooled"``, ``"maps"``, ``"token"``.
        compile: whether to run the model through ``torch.compile``.

    Returns:
        The student, in fp32, on the CPU or where the given model is.

    Raises:
        TypeError: there is no argument, or no setting of a delta, of a given name; the text gives the nearest one.
        UserError: an unknown model or delta, weights that are not available, or a delta that fits no layer.
        ValueError: a value is out of range; the text names the key.

    Example:
        >>> import distill
        >>> student = distill.create_student(
        ...     "embedded:tf_efficientnet_lite0", [{"type": "low_rank", "rank": 2, "sites": "blocks.6.*"}],
        ...     num_classes=10, size=32,
        ... )
        >>> [site.name for site in student.sites]
        ['blocks.6.0.conv_pw', 'blocks.6.0.conv_pwl']
    """
    network = _network(model, num_classes, size, pretrained, checkpoint, prefix, mean, std, in_chans)
    settings = LearningSettings(
        train=train,
        deltas=delta_settings(deltas, "create_student()"),
        batch_norm=batch_norm,
        compile=compile,
    )
    return Student(network, settings, fields(needs))


@checks_names
def create_teacher(
    models: str | nn.Module | Sequence[str | nn.Module],
    *,
    num_classes: int | None = None,
    size: int | None = None,
    weights: Sequence[float] | None = None,
    pretrained: bool = True,
    checkpoint: Path | str | None = None,
    prefix: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_chans: int | None = None,
    needs: str | Iterable[str] = ("logits",),
    dtype: torch.dtype | Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
) -> Teacher:
    """One or several frozen networks in eval mode: ``teacher(views.teacher) → features[network][view]``, in fp32.

    Args:
        models: a name or a timm model, or a sequence of them, as in :func:`create_student`. A given model is frozen in
            place: its parameters stop requiring gradients.
        num_classes: width of a new classifier, for features alone or for weights loaded later; None keeps the models'.
        size: height and width of the input in pixels; None: each model's own.
        weights: of the networks, positive, normalized to sum 1; None: equal.
        pretrained: whether to load the weights of these names.
        checkpoint: a ``.safetensors`` or weights-only ``.pth`` file to load instead, for a single network.
        prefix: what the names of the checkpoint's tensors begin with, such as ``"model."``; None: what fits.
        mean: of the input's normalization, by channel, in [0, 1], for all networks; None: each model's own.
        std: as ``mean``.
        in_chans: channels of the images, for which timm adapts the first layers; None: the models' own.
        needs: which fields of ``Features`` to compute, of ``"logits"``, ``"pooled"``, ``"maps"``.
        dtype: of the networks' weights and computation; autocast does not change it.
        compile: whether to run the models through ``torch.compile``.

    Returns:
        The teacher; ``teacher.inputs`` are the input sizes and normalizations that its networks expect.

    Raises:
        TypeError: there is no argument of a given name; the text gives the nearest one.
        UserError: an unknown model, or weights that are not available.
        ValueError: a value is out of range, or there is not one weight for each network.

    Example:
        >>> import distill
        >>> teacher = distill.create_teacher("embedded:tf_efficientnet_lite1", size=32, needs="pooled")
        >>> teacher.shapes[0].pooled, any(p.requires_grad for p in teacher.parameters())
        (1280, False)
    """
    given = [models] if isinstance(models, str | nn.Module) else list(models)
    if not given:
        raise ValueError("create_teacher() needs at least one network")
    if weights is not None and (len(weights) != len(given) or min(weights) <= 0):
        raise ValueError(f"weights must be {len(given)} positive numbers, one for each network, not {list(weights)}")
    if checkpoint is not None and len(given) > 1:
        raise ValueError(f"checkpoint is the file of one network, and there are {len(given)}; load each one before")
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return Teacher(
        [_network(model, num_classes, size, pretrained, checkpoint, prefix, mean, std, in_chans) for model in given],
        weights=None if weights is None else list(weights),
        needs=fields(needs),
        dtype=DTYPES[dtype] if isinstance(dtype, str) else dtype,
        compile=compile,
    )


class _Deltas(Settings):
    """Validates deltas, so that errors begin with a key such as ``deltas.0.rank``."""

    deltas: tuple[AnyDelta, ...]


def delta_settings(deltas: DeltaLike | Iterable[DeltaLike], caller: str) -> tuple[DeltaSettings, ...]:
    """Settings of every delta, for one delta or several; ``caller`` is the function that errors name."""
    if not isinstance(deltas, Iterable):
        raise TypeError(f"{caller}: deltas are names, mappings with 'type', or settings, not {deltas!r}")
    given = [deltas] if isinstance(deltas, str | Mapping | DeltaSettings) else list(deltas)
    for number, delta in enumerate(given):
        check_method(DELTAS, delta, f"{caller}, deltas.{number},")
    return _Deltas(deltas=tuple(given)).deltas  # type: ignore[arg-type]  # names and mappings become settings


def fields(needs: str | Iterable[str]) -> frozenset[str]:
    """Names of fields of ``Features``; raises ``ValueError`` for an unknown one."""
    chosen = frozenset([needs] if isinstance(needs, str) else needs)
    for need in sorted(chosen.difference(FIELDS)):
        raise ValueError(f"networks give no {need!r}{did_you_mean(need, FIELDS)}")
    return chosen


def _network(
    model: str | nn.Module,
    num_classes: int | None,
    size: int | None,
    pretrained: bool,
    checkpoint: Path | str | None,
    prefix: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    in_chans: int | None,
) -> Network:
    """A network by its name, or a given timm model; the arguments are those of :func:`create_student`."""
    if not isinstance(model, str):
        for name, value in (("checkpoint", checkpoint), ("prefix", prefix), ("in_chans", in_chans)):
            if value is not None:
                raise TypeError(f"{name} can only be given with a model's name; apply it to the given model before")
    settings = NetworkSettings(
        model=model if isinstance(model, str) else "given",
        size=size,
        pretrained=pretrained,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        prefix=prefix,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        in_chans=in_chans,
    )
    if isinstance(model, str):
        return create_network(settings, num_classes)
    return as_network(model, num_classes, settings.size, settings.mean, settings.std)
