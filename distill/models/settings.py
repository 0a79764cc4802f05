"""Settings of networks and of the student. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from augment.base import Registry, Settings, absolute, did_you_mean, error_at
from distill.data.base import MAX_CHANNELS
from distill.models.embedded import EMBEDDED

if TYPE_CHECKING:  # the base class of deltas imports torch
    from distill.deltas.base import DeltaSettings as AnyDelta
else:
    AnyDelta = Annotated[Settings, Registry("distill.deltas", "Delta")]


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
        description="folder of a delta file, or of a run that exported one, or hf-hub:OWNER/NAME: training starts from "
        "its deltas, and from the rows of its head for classes of the same names. It fills in network and deltas where "
        "they are left out",
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
