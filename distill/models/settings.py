"""Settings of networks, teacher and student; no torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from augment.base import Registry, Settings, did_you_mean, error_at
from distill.models.embedded import EMBEDDED

if TYPE_CHECKING:  # the base class of deltas imports torch
    from distill.deltas.base import DeltaSettings as AnyDelta
else:
    AnyDelta = Annotated[Settings, Registry("distill.deltas", "Delta")]


SCHEMES = ("embedded", "hf-hub", "local-dir")


class NetworkSettings(Settings):
    """Which network, with which weights, looking at which size."""

    model: str = Field(
        description="'embedded:NAME' (weights inside the install), a timm name such as 'resnet50.a1_in1k', "
        "'hf-hub:OWNER/NAME', or 'local-dir:FOLDER' (a timm folder, such as the merged one of a run)"
    )
    pretrained: bool = Field(True, description="load the weights that the model name stands for")
    checkpoint: Path | None = Field(None, description="a .safetensors or weights-only .pth file to load instead")
    size: int | None = Field(None, ge=8, le=2048, description="input pixels; default: the network's own")

    @model_validator(mode="after")
    def _model_can_be_found(self) -> NetworkSettings:
        scheme, colon, name = self.model.partition(":")
        if colon and scheme not in SCHEMES:
            raise error_at("model", f"no models are called '{scheme}:…'{did_you_mean(scheme, SCHEMES)}")
        if scheme == "embedded" and name not in EMBEDDED:
            raise error_at("model", f"no embedded weights for {name!r}{did_you_mean(name, EMBEDDED)}")
        return self


def _name(key: Any) -> Any:
    """YAML reads a class called 0 as a number."""
    return str(key) if isinstance(key, int) and not isinstance(key, bool) else key


Class = Annotated[int, Field(ge=0)] | str
"""A class of the teacher by its number, or by its name where the network has names."""
Labels = Literal["same", "names"] | dict[Annotated[str, BeforeValidator(_name)], Class | tuple[Class, ...]]


class TeacherNetworkSettings(NetworkSettings):
    weight: float = Field(1.0, gt=0, description="its share of every term that reads the teacher; normalized to sum 1")
    labels: Labels = Field(
        "same",
        description="which of its classes are the student's. 'same': all, in the same order; 'names': those of the "
        "same name; or {student's class: its class}, by number or name, a list where several of its classes are one",
    )


class WeightingSettings(Settings):
    """How much each network of the teacher counts; ``networks.N.weight`` is where all of them start from.

    ==========  ====================================================================================================
    type        a network's part, in proportion to
    ==========  ====================================================================================================
    fixed       its ``weight``
    confidence  weight · q^(1/T) for each sample, q the probability of the class that it finds most likely
    agreement   weight · q^(1/T) for each sample, q the probability that it gives to the label; unlabeled: its weight
    learned     exp(a) for all samples; a is learned by meta steps on images held out of training
    ==========  ====================================================================================================

    Learning looks at part of the validation split, so validation scores are then no longer of unseen images.
    """

    type: Literal["fixed", "confidence", "agreement", "learned"] = "fixed"
    temperature: float = Field(1.0, gt=0, description="confidence, agreement: T; a small one leaves all to one network")
    every: int = Field(10, ge=1, description="learned: steps between meta steps")
    lr: float = Field(1.0, gt=0, description="learned: step size; gradients are scaled to length 1 at most")
    images: int = Field(512, ge=2, description="learned: how many labeled validation images are looked at")
    batch_size: int = Field(64, ge=1, description="learned: how many of them in a meta step")


class CacheSettings(Settings):
    """Keep what the teacher says of its views, for the next student on the same stream of them."""

    logits: Literal["full", "none"] | Annotated[int, Field(ge=1)] = Field(
        "full", description="all of them, none, or how many of the largest; the others then share what is left evenly"
    )
    pooled: bool = Field(False, description="pooled features too, for objectives that read them")
    dtype: Literal["float16", "float32"] = Field("float16", description="of the numbers in the file")
    write: bool = Field(True, description="add what is missing; off: refuse to start without a cache of this stream")

    @property
    def holds(self) -> frozenset[str]:
        """The fields of ``Features`` that are kept."""
        return frozenset(["logits"] * (self.logits != "none") + ["pooled"] * self.pooled)

    @model_validator(mode="after")
    def _keeps_something(self) -> CacheSettings:
        if not self.holds:
            raise error_at("logits", "none, and no pooled features either: there is nothing to keep")
        return self


class TeacherSettings(Settings):
    """The networks, as they are looked at: never trained here (``fit_teacher`` is a stage of its own)."""

    networks: tuple[TeacherNetworkSettings, ...] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="its own dtype, whatever the student trains in"
    )
    weighting: WeightingSettings = WeightingSettings()
    compile: bool = False
    cache: CacheSettings | None = Field(None, description="keep its outputs in a file; none: it looks at every step")

    @model_validator(mode="after")
    def _there_is_something_to_weigh(self) -> TeacherSettings:
        if self.weighting.type != "fixed" and len(self.networks) == 1:
            raise error_at("weighting", f"{self.weighting.type}: there is only one network to weigh; add another")
        return self


class LearningSettings(Settings):
    """What a student learns on top of its backbone, and what stays frozen; without the backbone itself."""

    train: Literal["deltas", "full"] = Field(
        "deltas", description="'deltas': the backbone is frozen, deltas and head learn; 'full': every weight learns"
    )
    deltas: tuple[AnyDelta, ...] = Field((), description="none: only the head learns (a linear probe by gradient)")
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="train: full only; 'frozen' keeps the running statistics, for few images or few steps"
    )
    compile: bool = False

    @model_validator(mode="after")
    def _full_has_no_deltas(self) -> Self:
        if self.train == "full" and self.deltas:
            raise error_at("deltas", "there are none with train: full, which trains every weight")
        return self


class BackboneSettings(Settings):
    """The network that deltas and head are learned on."""

    network: NetworkSettings


class StudentSettings(LearningSettings, BackboneSettings):  # fields of the last base come first: network, train, …
    """The backbone, what is learned on top of it, and what stays frozen."""


class ReusedHead(Settings):
    """A head that reads another network's features, see :mod:`distill.models.reused_head`."""

    width: int = Field(ge=1, description="of the pooled features that the classifier reads")
    factor: int = Field(2, ge=1, description="width over that of the convs between")
