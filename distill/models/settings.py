"""Settings of networks, teacher and student. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from augment.base import Registry, Settings, absolute, did_you_mean, error_at
from distill.data.base import MAX_CHANNELS
from distill.models.embedded import EMBEDDED
from distill.text.settings import TextSettings

if TYPE_CHECKING:  # the base class of deltas imports torch
    from distill.deltas.base import DeltaSettings as AnyDelta
else:
    AnyDelta = Annotated[Settings, Registry("distill.deltas", "Delta")]


PREVIOUS = "previous"
"""``teacher.networks.N.model`` of the student as it was before a task."""
MOMENTUM = "momentum"
"""``teacher.networks.N.model`` of the average of the student."""
OF_STUDENT = (PREVIOUS, MOMENTUM)
SCHEMES = ("embedded", "hf-hub", "local-dir")


class NetworkSettings(Settings):
    """Architecture, weights and input size of a network."""

    model: str = Field(
        description="'embedded:NAME' (weights inside the install), a timm name such as 'resnet50.a1_in1k', "
        "'hf-hub:OWNER/NAME', or 'local-dir:FOLDER' (a timm folder, such as the merged one of a run)"
    )
    pretrained: bool = Field(True, description="load the pretrained weights of this model name")
    checkpoint: Path | None = Field(
        None,
        description="a file to load instead: .safetensors, or a pickle of tensors and plain values, such as timm's "
        "model_best.pth.tar or Lightning's .ckpt",
    )
    prefix: str | None = Field(
        None,
        description="what the names of the checkpoint's tensors begin with, such as 'student.'; default: what fits",
    )
    size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="height and width of the input in pixels; default: those that timm's training script noted in the "
        "checkpoint, else the model's own",
    )
    mean: tuple[float, ...] | None = Field(
        None, min_length=1, description="of the input's normalization, by channel, in [0, 1]; default: the model's own"
    )
    std: tuple[float, ...] | None = Field(None, min_length=1, description="of the input's normalization, as mean")
    in_chans: int | None = Field(
        None,
        ge=1,
        le=MAX_CHANNELS,
        description="channels of the images; if they are not the model's own, timm adapts its first layer. Default: "
        "data.channels if that is not 3, else the model's own",
    )

    @field_validator("model")
    @classmethod
    def _with_absolute_folder(cls, model: str) -> str:
        scheme, colon, folder = model.partition(":")
        return f"{scheme}:{absolute(folder)}" if colon and scheme == "local-dir" else model

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        scheme, colon, name = self.model.partition(":")
        if colon and scheme not in SCHEMES:
            raise error_at("model", f"no models are called '{scheme}:…'{did_you_mean(scheme, SCHEMES)}")
        if scheme == "embedded" and name not in EMBEDDED:
            raise error_at("model", f"no embedded weights for {name!r}{did_you_mean(name, EMBEDDED)}")
        if self.prefix is not None and self.checkpoint is None:
            raise error_at("prefix", "there is no checkpoint whose names could begin with it")
        if self.std is not None and min(self.std) <= 0:
            raise error_at("std", "must be greater than 0")
        return self


def _name(key: Any) -> Any:
    """A class's name as a string: YAML reads a class called 0 as a number."""
    return str(key) if isinstance(key, int) and not isinstance(key, bool) else key


Class = Annotated[int, Field(ge=0)] | str
"""A class of the teacher by its number, or by its name where the network has names."""


class TextLabels(TextSettings):
    """A map of the teacher's classes to the student's by their texts, so that no label of the data is read.

    See :class:`distill.models.soft_label_map.SoftLabelMap`.
    """

    by: Literal["text"]
    method: Literal["conse", "map"] = Field(
        "conse", description="conse: cosines with the mean embedding of the likely classes · map: p M, softmax rows"
    )
    temperature: float = Field(0.05, gt=0, description="τ, which cosines are divided by")
    top: int = Field(10, ge=1, description="conse: number of the teacher's likeliest classes that are read")
    teacher_texts: Literal["names", "definitions", "both"] = Field(
        "definitions",
        description="which texts of the teacher's classes are embedded; of ImageNet's, the sense is known, and with "
        "definitions 20 % of CIFAR-100's training images are right instead of 17 %",
    )
    balance: bool = Field(
        False, description="lower the logits of classes whose texts are near to those of most of the teacher's classes"
    )


ClassLabels = (
    Literal["same", "names", "numbers"] | dict[Annotated[str, BeforeValidator(_name)], Class | tuple[Class, ...]]
)
_CLASS_LABELS: TypeAdapter[Any] = TypeAdapter(ClassLabels)


def _by_text(labels: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A mapping with ``by: text`` is one of settings, all else one of classes; an error is about one of them."""
    if isinstance(labels, TextLabels):
        return labels
    if isinstance(labels, dict) and labels.get("by") == "text":
        return TextLabels.model_validate(labels, context=info.context)
    return _CLASS_LABELS.validate_python(labels, context=info.context)


Labels = Annotated[ClassLabels | TextLabels, WrapValidator(_by_text)]


class TeacherNetworkSettings(NetworkSettings):
    """One of the teacher's networks, its weight, and the map of its classes to the student's.

    ``{model: previous}`` is, in a stream of tasks, the student as it was before the task, with the classes that it
    knew; it has no other key than ``weight``. In the first task it is left out.

    ``{model: momentum}`` is the exponential moving average of the student, for objectives that read it (``byol``,
    ``moco``); see :class:`distill.training.momentum.MomentumNetwork`. It has no other key than ``decay``.
    """

    decay: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None,
        description="model: momentum only: decay of the average in the first and after the last update, rising by a "
        "cosine; default [0.99, 1]",
    )
    weight: float = Field(
        1.0, gt=0, description="weight of this network in every term that reads the teacher; normalized to sum 1"
    )
    delta: Path | None = Field(
        None,
        description="folder of a delta file, such as runs/NAME/export/delta, whose deltas and head this network gets; "
        "its backbone is this network, which is checked",
    )
    labels: Labels = Field(
        "same",
        description="which of its classes are the student's. 'same': all, matched by name where both have names, else "
        "in the same order; 'names': those of the same name; 'numbers': all, in the same order whatever the names; or "
        "{student's class: its class}, by number or name, with a list of classes to be added up; or {by: text, …}: "
        "other classes, mapped by the similarity of their texts",
    )

    @property
    def is_previous(self) -> bool:
        """Whether it is the student before a task instead of a network of its own."""
        return self.model == PREVIOUS

    @property
    def is_momentum(self) -> bool:
        """Whether it is the average of the student instead of a network of its own."""
        return self.model == MOMENTUM

    @property
    def of_student(self) -> bool:
        """Whether it is made from the student instead of its own settings."""
        return self.model in OF_STUDENT

    @model_validator(mode="after")
    def _previous_is_whole(self) -> Self:
        if self.is_previous and (given := self.model_fields_set - {"model", "weight"}):
            raise error_at(sorted(given)[0], "the previous model is the student before the task, with its own input")
        return self

    @model_validator(mode="after")
    def _check_momentum(self) -> Self:
        if not self.is_momentum:
            if self.decay is not None:
                raise error_at("decay", f"only model: {MOMENTUM} has a decay; leave it out")
            return self
        for name, field in type(self).model_fields.items():
            if name not in ("model", "decay") and getattr(self, name) != field.default:
                raise error_at(name, f"the {MOMENTUM} network is a copy of the student; leave {name} out")
        if self.decay is not None and self.decay[0] > self.decay[1]:
            raise error_at("decay", f"must not fall, but is {list(self.decay)}")
        return self


class WeightingSettings(Settings):
    """How the outputs of several teacher networks are weighted; ``weight`` is ``networks.N.weight``.

    ==========  ====================================================================================================
    type        weight of a network, before normalization to sum 1
    ==========  ====================================================================================================
    fixed       its ``weight``
    confidence  weight · q^(1/T) for each sample, q the probability of its most likely class
    agreement   weight · q^(1/T) for each sample, q its probability of the label; without a label: weight
    learned     exp(a) for all samples; meta steps on images held out of training learn a
    ==========  ====================================================================================================

    ``learned`` trains on part of the validation split, so validation scores are no longer of unseen images.
    """

    type: Literal["fixed", "confidence", "agreement", "learned"] = "fixed"
    temperature: float = Field(1.0, gt=0, description="confidence, agreement: T; a small T nearly selects one network")
    every: int = Field(10, ge=1, description="learned: steps between meta steps")
    lr: float = Field(1.0, gt=0, description="learned: step size; gradients are scaled to length 1 at most")
    images: int = Field(512, ge=2, description="learned: number of labeled validation images for the meta steps")
    batch_size: int = Field(64, ge=1, description="learned: images in a meta step")

    @property
    def by_sample(self) -> bool:
        """Whether the weights differ between samples."""
        return self.type in ("confidence", "agreement")

    def check(self, unweighable: Sequence[str], compiled: bool) -> None:
        """Raise if the objectives or the student do not support the weighting.

        Args:
            unweighable: types of the objectives that read the teacher and are not a mean over samples.
            compiled: whether the student is compiled.
        """
        if self.by_sample and unweighable:
            text = f"{self.type} weights each sample, and {', '.join(unweighable)} is not a mean over samples"
            raise error_at("teacher.weighting", f"{text}; fixed and learned weights work with every objective")
        if self.type == "learned" and compiled:
            text = "weighting: learned needs one gradient per teacher network, which a compiled student cannot compute"
            raise error_at("student.compile", text)


class CacheSettings(Settings):
    """Settings of a file with the teacher's outputs, for later runs with the same teacher and views."""

    logits: Literal["full", "none"] | Annotated[int, Field(ge=1)] = Field(
        "full",
        description="full, none, or the number of largest logits per sample to keep; the remaining probability is then "
        "distributed evenly",
    )
    pooled: bool = Field(False, description="keep pooled features too, for objectives that read them")
    dtype: Literal["float16", "float32"] = Field("float16", description="of the values in the file")
    write: bool = Field(
        True, description="add missing outputs to the file; false: an error if there is no file for these views"
    )

    @property
    def holds(self) -> frozenset[str]:
        """The fields of ``Features`` that are kept."""
        return frozenset(["logits"] * (self.logits != "none") + ["pooled"] * self.pooled)

    def check(self, readers: Mapping[str, frozenset[str]]) -> None:
        """Raise if the cache lacks an output of the teacher that is read.

        Args:
            readers: name of an objective or other reader → the fields of ``Features`` that it reads.
        """
        for reader, needs in readers.items():
            lacking = needs - self.holds
            if "maps" in lacking:
                text = f"{reader} reads the teacher's maps, which no cache holds; remove the cache"
                raise error_at("teacher.cache", text)
            if "logits" in lacking:
                text = f"{reader} reads the teacher's logits; set full, or the number of largest ones to keep"
                raise error_at("teacher.cache.logits", text)
            if "pooled" in lacking:
                raise error_at("teacher.cache.pooled", f"{reader} reads the teacher's pooled features; set true")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if not self.holds:
            raise error_at("logits", "none without pooled features: the cache would hold nothing")
        return self


class EmaSettings(Settings):
    """A teacher that is the student's own backbone with averaged deltas and head: kilobytes, and no second network.

    ``average ← d · average + (1 − d) · weight`` after each update; see
    :class:`distill.training.momentum.MomentumNetwork`. It sees the teacher's views, at the student's size. Its weights
    start equal to the student's.
    """

    decay: float = Field(0.99, ge=0, le=1, description="d, the same in all updates")
    normalizations: tuple[Literal["source", "target"], ...] = Field(
        (),
        description="whose batch-norm statistics it computes with: [source, target] is the mean of both answers, at the"
        " cost of two forward passes; needs a statistics delta. Default: the target's",
    )

    @field_validator("normalizations")
    @classmethod
    def _differ(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(given)) < len(given):
            raise ValueError("each normalization once")
        return given


class TeacherSettings(Settings):
    """The teacher's networks and how they run.

    All but the momentum network are frozen; the stage ``fit_teacher`` can train them beforehand.
    """

    networks: tuple[TeacherNetworkSettings, ...] = Field((), description="one or several, with weights")
    ema: EmaSettings | None = Field(
        None, description="average of the student's deltas and head as a teacher, for objectives such as self_training"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the teacher, independent of the student's precision"
    )
    weighting: WeightingSettings = WeightingSettings()
    compile: bool = Field(False, description="run the networks through torch.compile")
    cache: CacheSettings | None = Field(
        None, description="keep its outputs in a file; none: compute them at every step"
    )

    def check(self, heads: Sequence[str], fitted: bool) -> None:
        """Raise if the networks cannot be combined with the objectives, or with a fit of the teacher.

        Args:
            heads: types of the objectives that replace the student's head by the teacher's.
            fitted: whether the networks are trained first, on the data's classes.
        """
        for n, network in enumerate(self.networks):
            if network.labels in ("same", "numbers"):
                continue
            if fitted:
                text = "fit_teacher trains the network on the data's classes; leave labels out"
                raise error_at(f"teacher.networks.{n}.labels", text)
            if heads:
                text = f"{', '.join(heads)} gives the student the teacher's head with its own classes; leave labels out"
                raise error_at(f"teacher.networks.{n}.labels", text)
        if len(heads) * len(self.frozen) > 1:
            text = f"{', '.join(heads)} replaces the student's head, which only one term with one teacher can do"
            raise error_at("objectives", text)

    @property
    def frozen(self) -> tuple[TeacherNetworkSettings, ...]:
        """The networks that do not change while the student is trained: all but the momentum network."""
        return tuple(network for network in self.networks if not network.is_momentum)

    @property
    def momentum(self) -> tuple[float, float] | None:
        """Decay of the momentum network at the start and at the end; None without such a network."""
        if self.ema is not None:
            return self.ema.decay, self.ema.decay
        decays = [network.decay or (0.99, 1.0) for network in self.networks if network.is_momentum]
        return decays[0] if decays else None

    @model_validator(mode="after")
    def _check_networks(self) -> Self:
        momentum = [n for n, network in enumerate(self.networks) if network.is_momentum]
        if len(momentum) > 1:
            raise error_at(f"networks.{momentum[1]}", f"networks.{momentum[0]} is the {MOMENTUM} network; give one")
        if not self.networks and self.ema is None:
            raise error_at("networks", "a teacher is one network or several; name one, or set ema")
        if momentum and self.ema is not None:
            raise error_at("ema", f"networks.{momentum[0]} is an average of the student already; give one of them")
        if self.momentum is not None and not self.frozen and self.cache is not None:
            what = f"{MOMENTUM} network" if momentum else "EMA teacher"
            raise error_at("cache", f"the outputs of the {what} change with every step; leave cache out")
        return self

    @model_validator(mode="after")
    def _check_weighting(self) -> Self:
        if self.weighting.type != "fixed" and len(self.frozen) < 2:
            raise error_at("weighting", f"{self.weighting.type}: there is only one network to weight; add another")
        return self


class LearningSettings(Settings):
    """Which parts of a student are trained and which are frozen, without the choice of the backbone."""

    train: Literal["deltas", "full"] = Field(
        "deltas",
        description="'deltas': the backbone is frozen, deltas and head are trained; 'full': every weight is trained",
    )
    deltas: tuple[AnyDelta, ...] = Field((), description="none: only the head is trained (a linear probe by gradient)")
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="train: full only: 'frozen' keeps the running statistics, for few images or few steps"
    )
    compile: bool = Field(False, description="run the student through torch.compile")

    @model_validator(mode="after")
    def _full_has_no_deltas(self) -> Self:
        if self.train == "full" and self.deltas:
            raise error_at("deltas", "train: full trains every weight and takes no deltas")
        return self


class BackboneSettings(Settings):
    """The network that deltas and head are trained on."""

    network: NetworkSettings


class StudentSettings(LearningSettings, BackboneSettings):  # fields of the last base come first: network, train, …
    """The backbone, and which parts of the student are trained and frozen."""

    start: Path | None = Field(
        None,
        description="folder of a delta file, or of a run that exported one: training starts from its deltas, and from "
        "the rows of its head for classes of the same names. It fills in network and deltas where they are left out",
    )

    @model_validator(mode="after")
    def _starts_from_deltas(self) -> Self:
        if self.start is not None and self.train == "full":
            raise error_at("start", "train: full has no deltas that could start from those of a file")
        return self


class ReusedHead(Settings):
    """Sizes of the projector to a reused classifier, see :mod:`distill.models.reused_head`."""

    width: int = Field(ge=1, description="number of pooled features that the classifier reads")
    factor: int = Field(2, ge=1, description="width divided by the number of channels of the hidden convs")
