"""The two contracts of a delta: one that changes a weight, one that attaches modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from augment.base import Component, Settings, UserError

LayerKind = Literal["linear", "conv", "depthwise", "norm"]
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)


class DeltaError(UserError, ValueError):
    """A delta cannot be built, attached, merged or loaded; the text names the layer and what would work."""


@contextmanager
def entry_named(number: int) -> Iterator[None]:
    """Errors that an entry of the config raises in here begin with its key."""
    try:
        yield
    except DeltaError as error:
        raise type(error)(f"student.deltas.{number}: {error}") from None


class LayerRefused(DeltaError):
    """This layer cannot carry this delta: passed over where the pattern finds others, else an error."""


class DeltaSettings(Settings):
    type: str
    sites: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="fnmatch patterns over module names, e.g. 'blocks.*.conv_pw'; 'blocks.*.attn.qkv[qv]' for q and v",
    )
    exclude: tuple[str, ...] = Field((), description="patterns taken out again")
    kinds: tuple[LayerKind, ...] | None = Field(
        None, min_length=1, description="layer kinds to change; none means all that the method knows"
    )

    @field_validator("sites", "exclude", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("kinds", mode="before", json_schema_input_type=LayerKind | tuple[LayerKind, ...] | None)
    @classmethod
    def _one_or_many_kinds(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class SizedSettings(DeltaSettings):
    """Of a method whose delta may come out as large as the layer itself."""

    oversized: Literal["skip", "dense", "error"] = Field(
        "skip",
        description="where the delta would take as many bytes as the layer's weight (depthwise convs, tiny layers): "
        "pass over the layer (an error if the pattern finds nothing else), learn a dense change instead, or an error",
    )


@dataclass(frozen=True)
class Gradients:
    """Gradients of the experiment's own loss at one layer's weight, over batches of training views."""

    mean: Tensor
    """Of the weight's shape."""
    square: Tensor
    """Mean over batches of the squared gradient, of the weight's shape: the diagonal of the empirical Fisher."""
    inputs: float
    """Mean square of an entry of the layer's input."""


class CalibrationStats(Protocol):
    """A student at one point of a free training; everything is by site, the rows of a fused site alone."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What the weights have become."""

    def gradients(self, samples: int) -> Mapping[str, Gradients]:
        """Over at least ``samples`` training images, or all there are. Labels that training may not see are hidden."""

    def feature_change(self, samples: int) -> Mapping[str, float]:
        """``1 − CKA`` of the pooled features when one weight is put back to what it was before the free training."""


class Calibration(Protocol):
    """What a method may look at before training. Nothing is computed until it is asked for, and nothing twice."""

    @property
    def backbone(self) -> nn.Module:
        """The student's network as it is before training and without deltas, to look at; not to be changed."""

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """Site → its layer as it is before training; the rows that a fused site names as a Linear of their own. A
        structural delta is shown every Linear and Conv2d of the backbone."""

    def after(
        self, epochs: int, train: Literal["weights", "head"] = "weights", lr: float | None = None
    ) -> CalibrationStats:
        """The student after ``epochs`` of the experiment's own training, 0 for none.

        Args:
            train: "weights" lets every weight at ``layers`` move freely, together with the head and the other deltas;
                "head" trains the head alone and leaves the backbone as it is.
            lr: learning rate, constant; None: the experiment's for the head, a tenth of it for weights, which take
                smaller steps than deltas do.
        """


@dataclass(frozen=True)
class DeltaInit:
    """How the deltas of one entry of ``student.deltas`` start, or what they have become."""

    settings: Sequence[DeltaSettings]
    """In the entry's place, in this order; their ``sites`` may be exact names, say one entry for each rank."""
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Site → name in the delta's ``state_dict`` → value. What is not named starts as its class makes it. The site of a
    structural delta, which is the only one of its entry, is called by its type."""
    warm_start: CalibrationStats | None = None
    """The point of a free training whose head, and whose other deltas, training goes on from; None: from new ones."""


@dataclass(frozen=True)
class DeltaTensors:
    """A delta without its layer, as a delta file holds it."""

    settings: DeltaSettings
    tensors: Mapping[str, Tensor]
    """Name in the delta's ``state_dict`` → value."""


class Delta(nn.Module, Component):
    """What ``student.deltas`` can name: a learned change of a frozen backbone, of one of the two kinds below.

    Class attributes:
        identity_at_init: whether a fresh delta leaves the backbone's output bit-equal.
        no_weight_decay: names of its parameters that must not decay (scales, biases).
    """

    Settings = DeltaSettings

    identity_at_init: ClassVar[bool] = True
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    settings: DeltaSettings

    def extra_repr(self) -> str:
        """The method's own settings, as ``rank=4, alpha=8.0``: not where it sits, and not what is left open."""
        general = {*DeltaSettings.model_fields, "oversized"}
        own = {name: getattr(self.settings, name) for name in type(self.settings).model_fields if name not in general}
        return ", ".join(f"{name}={value}" for name, value in own.items() if value is not None)

    def penalty(self) -> Tensor | None:
        """What this delta adds to the loss, weighted by its own settings, or None where these ask for nothing.

        A scalar with a graph. Training sums it over all deltas, computes it outside autocast, and logs the sum as the
        term ``penalty``. Whether it is None must follow from the settings alone.
        """
        return None

    def metrics(self) -> dict[str, Tensor]:
        """Scalars of the last training forward that are worth watching, by name; logged as ``delta/<type>/<name>``.

        Kept detached, on the device, by the forward itself; read only where the log is written.
        """
        return {}

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        """Whether ``prepare`` is to be called before training."""
        return False

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        """Choose ranks, masks or starting values from the data, before training.

        Runs once per entry of ``student.deltas``, whose result is kept in the run folder: a resumed run does not choose
        again. Must be repeatable: random numbers only from torch's global generator, which is seeded. While free
        training runs for ``evidence``, dense deltas take the place of all entries that prepare themselves.
        """
        raise NotImplementedError

    @classmethod
    def after_step(cls, deltas: Mapping[str, Self], step: int, steps: int) -> None:
        """Act after an optimizer step, on all deltas of one entry at once (site → delta), gradients still in place.

        What has to be remembered from step to step is a buffer of the delta, so that a resumed run goes on with it.
        Must not wait for the device. Under DDP every rank sees the same gradients and must do the same.

        Args:
            step, steps: steps made so far, 1 for the first; steps of the whole training.
        """
        return None

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> DeltaInit | None:
        """What the trained deltas of one entry become for evaluation and export (site → delta): cut to their ranks,
        without what only training needed. None: they stay as they are. A function of their tensors alone.
        """
        return None


class WeightDelta(Delta):
    """A learned change of one layer's weight, and of its bias where it has one: a torch parametrization.

    Definition: ``forward(weight) → weight`` of the same shape, and ``bias(bias) → bias``. So it works on every layer
    that reads ``.weight``, keeps timm's module names, and merges exactly, by evaluating it once.

    That definition costs a full weight gradient. A delta may declare a cheaper way in ``output``, used while gradients
    are recorded, on plain Linear and Conv2d where no other delta touches what it changes, and tested equal to the
    definition.

    Class attributes:
        kinds: layer kinds that it applies to, of ``LayerKind``. A conv with one input channel per group is "depthwise",
            any other is "conv", grouped or not.
        changes_weight: whether ``forward`` is more than the identity.
        changes_bias: whether ``bias`` is more than the identity.
        additive: whether what it adds to weight and bias does not depend on them. Such changes add up in any order.
        proportional_to: its tensors that the change is proportional to: multiply all of them by c, and it is c times
            the change. Empty where there are none.
    """

    kinds: ClassVar[frozenset[LayerKind]] = frozenset({"linear", "conv", "depthwise"})
    changes_weight: ClassVar[bool] = True
    changes_bias: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    proportional_to: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: DeltaSettings, layer: nn.Module):
        """Build the parameters from the layer's shapes, on its device and in its dtype.

        Random starts draw from torch's global generator, so ``torch.manual_seed`` before ``attach`` repeats them.

        Raises:
            LayerRefused: the layer cannot carry it.
        """
        super().__init__()
        self.settings = settings

    @classmethod
    def check(cls, settings: DeltaSettings, layers: Mapping[str, nn.Module]) -> None:
        """Raise ``DeltaError`` where the settings ask for what the layers of an entry (site → layer) cannot give.

        Called before anything is trained: for budgets and bounds that would otherwise fail only then.
        """
        return None

    @classmethod
    def summed(cls, parts: Sequence[DeltaTensors]) -> DeltaTensors | None:
        """One delta that changes by the sum of what ``parts``, all of this class, change; None where there is none."""
        first = parts[0]
        equal_settings = all(part.settings == first.settings for part in parts)
        if not equal_settings or not all(cls.proportional_to.issuperset(part.tensors) for part in parts):
            return None
        sums = {name: torch.stack([part.tensors[name] for part in parts]).sum(0) for name in first.tensors}
        return DeltaTensors(first.settings, sums)

    def forward(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def bias(self, bias: Tensor) -> Tensor:
        return bias

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """The changed layer's output computed the cheap way, or None where there is none.

        ``frozen(layer, "weight")`` is the weight before any change; ``layer.bias`` is the bias after all changes.
        """
        return None


class StructuralDelta(Delta):
    """Modules attached to named blocks, or to the whole backbone; not mergeable.

    ``attach`` hooks bound methods of this module into the backbone (bound methods survive a deepcopy together with
    what they are bound to). The caller keeps the module itself as a child of the backbone.

    Class attributes:
        shares_backbone: whether other deltas may change the same backbone.
    """

    shares_backbone: ClassVar[bool] = True

    def __init__(self, settings: DeltaSettings, backbone: nn.Module):
        """Build the parameters from the backbone's shapes."""
        super().__init__()
        self.settings = settings

    def attach(self, backbone: nn.Module) -> None:
        raise NotImplementedError

    def is_identity(self) -> bool:
        """Whether it still leaves the output as it is, as at the start: such a delta is not worth a file."""
        raise NotImplementedError


def frozen(layer: nn.Module, name: str) -> Tensor | None:
    """A layer's own ``weight`` or ``bias``, before any delta."""
    changes: Any = getattr(layer, "parametrizations", {})
    return changes[name].original if name in changes else getattr(layer, name, None)


def frozen_weight(layer: nn.Module) -> Tensor:
    """A layer's own weight, before any delta."""
    weight = frozen(layer, "weight")
    assert weight is not None
    return weight


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """What the tensors take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


__all__ = [
    "LAYER_KINDS",
    "Delta",
    "DeltaError",
    "DeltaSettings",
    "DeltaTensors",
    "LayerKind",
    "LayerRefused",
    "SizedSettings",
    "StructuralDelta",
    "WeightDelta",
    "entry_named",
    "frozen",
    "frozen_weight",
    "tensor_bytes",
]
