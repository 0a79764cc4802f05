"""Settings of the teacher: networks, weighting, cache of its outputs. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from augment.base import Settings, error_at
from distill.models.label_settings import Labels
from distill.models.settings import NetworkSettings

PREVIOUS = "previous"
"""``teacher.networks.N.model`` of the student as it was before a task."""
MOMENTUM = "momentum"
"""``teacher.networks.N.model`` of the average of the student."""
OF_STUDENT = (PREVIOUS, MOMENTUM)


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
