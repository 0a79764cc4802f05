"""The base classes of deltas: ``WeightDelta`` changes a layer's weight, ``StructuralDelta`` attaches modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from augment.base import Component, Settings, UserError
from distill.deltas.activation import ActivationForm

LayerKind = Literal["linear", "conv", "depthwise", "norm"]
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)


class DeltaError(UserError, ValueError):
    """A delta cannot be built, attached, merged or loaded; the text names the layer and what would work."""


@contextmanager
def entry_named(number: int) -> Iterator[None]:
    """Prefix a ``DeltaError`` raised inside with the key of an entry, ``student.deltas.<number>``."""
    try:
        yield
    except DeltaError as error:
        raise type(error)(f"student.deltas.{number}: {error}") from None


class LayerRefused(DeltaError):
    """A layer cannot carry a delta. ``attach`` skips it if the pattern matches other layers that can, else raises."""


class DeltaSettings(Settings):
    type: str
    sites: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="fnmatch patterns over module names, e.g. 'blocks.*.conv_pw'; 'blocks.*.attn.qkv[qv]' for q and v; "
        "without wildcards a whole name, or the end of names, e.g. 'fc1'; 'all-linear': all but the classifier",
    )
    exclude: tuple[str, ...] = Field((), description="patterns of names to leave out of those of sites")
    kinds: tuple[LayerKind, ...] | None = Field(
        None, min_length=1, description="kinds of layers to change; none: all that the method supports"
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
    """Settings of a method whose delta may take as many bytes as the layer's weight."""

    oversized: Literal["skip", "dense", "error"] = Field(
        "skip",
        description="for layers whose delta would take as many bytes as their weight, or more (depthwise convs, small "
        "layers). skip: no delta (an error if the pattern matches no other layer); dense: a dense delta; error: stop",
    )


@dataclass(frozen=True)
class Gradients:
    """Statistics of the gradient of the experiment's loss in one layer's weight, over batches of training views."""

    mean: Tensor
    """Mean over batches, of the weight's shape."""
    square: Tensor
    """Mean of the square over batches, of the weight's shape: the diagonal of the empirical Fisher information."""
    inputs: float
    """Mean square of the entries of the layer's input."""


class CalibrationStats(Protocol):
    """Measurements of the student after a warm-up, by site. A site in a fused projection has those of its own rows."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Site → weight after the warm-up."""

    def gradients(self, samples: int) -> Mapping[str, Gradients]:
        """Site → gradient statistics, over at least ``samples`` training images, or all if there are fewer.

        Images whose labels the experiment withholds from training count as unlabeled.
        """

    def feature_change(self, samples: int) -> Mapping[str, float]:
        """Site → ``1 − CKA`` of the pooled features before and after this site's weight is reset.

        All weights have their values after the warm-up; the reset gives one of them its value before the warm-up.
        ``samples`` is the number of training images.
        """


class Calibration(Protocol):
    """Measurements of the student that a method may use before training. Each is computed once, on first use."""

    @property
    def backbone(self) -> nn.Module:
        """The student's network before training, without deltas. It must not be changed."""

    @property
    def layers(self) -> Mapping[str, nn.Module]:
        """Site → layer before training. For a site in a fused projection, its rows as a separate Linear.

        A structural delta gets every Linear and Conv2d of the backbone.
        """

    def after(
        self, epochs: int, train: Literal["weights", "head"] = "weights", lr: float | None = None
    ) -> CalibrationStats:
        """Train the student for a warm-up, with the experiment's data and loss.

        Args:
            epochs: length of the warm-up; 0: no training.
            train: "weights": every weight at ``layers`` is trained, with the head and the other deltas; "head": the
                head alone is trained.
            lr: constant learning rate; None: the experiment's for "head", a tenth of it for "weights", since weights
                need smaller steps than deltas.

        Returns:
            Measurements of the student after the warm-up.
        """


@dataclass(frozen=True)
class DeltaInit:
    """Settings and tensors of the deltas of one entry of ``student.deltas``, before or after training."""

    settings: Sequence[DeltaSettings]
    """Replace the entry, in this order. Their ``sites`` may be exact names, for example one entry per rank."""
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Site → name in the delta's ``state_dict`` → value. Tensors that are not named keep the initial values that the
    delta's class gives them. A structural delta, of which an entry has one, stands under its type instead of a site."""
    warm_start: CalibrationStats | None = None
    """The warm-up whose head and other deltas training starts from; None: from newly initialized ones."""


@dataclass(frozen=True)
class DeltaTensors:
    """Settings and tensors of a delta without its layer, as a delta file stores them."""

    settings: DeltaSettings
    tensors: Mapping[str, Tensor]
    """Name in the delta's ``state_dict`` → value."""


class Delta(nn.Module, Component):
    """A learned change of a frozen backbone, named in ``student.deltas``: a ``WeightDelta`` or ``StructuralDelta``.

    Class attributes:
        identity_at_init: whether a fresh delta leaves the backbone's output bit-equal.
        no_weight_decay: names of its parameters that get no weight decay (scales, biases).
    """

    Settings = DeltaSettings

    identity_at_init: ClassVar[bool] = True
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    settings: DeltaSettings

    def extra_repr(self) -> str:
        """The method's own settings, such as ``rank=4, alpha=8.0``, without sites and without those that are None."""
        general = {*DeltaSettings.model_fields, "oversized"}
        own = {name: getattr(self.settings, name) for name in type(self.settings).model_fields if name not in general}
        return ", ".join(f"{name}={value}" for name, value in own.items() if value is not None)

    def penalty(self) -> Tensor | None:
        """A regularization term of the loss, weighted by the delta's settings; None if they turn it off.

        A scalar with a graph. Training sums it over all deltas, computes it outside autocast, and logs the sum as the
        term ``penalty``. Whether it is None must depend on the settings alone.
        """
        return None

    def metrics(self) -> dict[str, Tensor]:
        """Scalars of the last training forward, by name; logged as ``delta/<type>/<name>``.

        ``forward`` keeps them, detached and on the device; they are read only when the log is written.
        """
        return {}

    @classmethod
    def redefines(cls, hook: str) -> bool:
        """Whether the method has its own ``after_step`` or ``finish``, such as "finish"."""
        return getattr(cls, hook).__func__ is not getattr(Delta, hook).__func__

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        """Whether ``prepare`` is called before training."""
        return False

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        """Choose ranks, masks or initial values from the data, before training.

        Called once per entry of ``student.deltas``. The result is stored in the run folder, so a resumed run does not
        choose again. It must be repeatable: random numbers come from torch's global generator alone, which is seeded.
        During the warm-ups of ``calibration``, dense deltas replace all entries for which ``prepares`` is true.
        """
        raise NotImplementedError

    @classmethod
    def after_step(cls, deltas: Mapping[str, Self], step: int, steps: int) -> None:
        """Update all deltas of one entry after an optimizer step, while their gradients are still there.

        State that is kept from step to step must be a buffer of the delta, so that a resumed run continues with it. The
        call must not synchronize with the device. Under DDP every rank has the same gradients and must make the same
        changes.

        Args:
            deltas: site → delta.
            step: number of steps made, 1 after the first.
            steps: number of steps of the whole training.
        """
        return None

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> DeltaInit | None:
        """Convert the trained deltas of one entry (site → delta) for evaluation and export.

        They are cut to their final ranks and lose tensors that only training needs. None: they stay as they are. The
        result must depend on their tensors alone.
        """
        return None


class WeightDelta(Delta):
    """A learned change of one layer's weight, and of its bias where it has one: a torch parametrization.

    Definition: ``forward(weight) → weight`` of the same shape, and ``bias(bias) → bias``. So it works on every layer
    that reads ``.weight``, keeps timm's module names, and is merged exactly by evaluating it once.

    Training by this definition computes the gradient of the full weight. A delta may compute the same in a cheaper way
    in ``output``. It is used while gradients are recorded, on plain Linear and Conv2d layers where no other delta
    changes the same tensors. Tests compare it with the definition.

    Class attributes:
        kinds: kinds of layers that it can change, of ``LayerKind``. A conv with one input channel per group is
            "depthwise", any other is "conv", grouped or not.
        changes_weight: whether ``forward`` is more than the identity.
        changes_bias: whether ``bias`` is more than the identity.
        additive: whether what it adds to weight and bias is independent of their values. Such changes can be summed in
            any order.
        proportional_to: names of its tensors that the change is proportional to: multiplying all of them by c
            multiplies the change by c. Empty if there are none.
        product: names of its tensors B [g, m, r] and A [g, r, n] if its rank enters only by their product B A, so that
            a truncation of the product is a delta of a smaller rank; None if there are none.
    """

    kinds: ClassVar[frozenset[LayerKind]] = frozenset({"linear", "conv", "depthwise"})
    changes_weight: ClassVar[bool] = True
    changes_bias: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    proportional_to: ClassVar[frozenset[str]] = frozenset()
    product: ClassVar[tuple[str, str] | None] = None

    def __init__(self, settings: DeltaSettings, layer: nn.Module):
        """Build the parameters from the layer's shapes, on its device and in its dtype.

        Random initial values come from torch's global generator: ``torch.manual_seed`` before ``attach`` repeats them.

        Raises:
            LayerRefused: the layer cannot carry this delta.
        """
        super().__init__()
        self.settings = settings

    @classmethod
    def check(cls, settings: DeltaSettings, layers: Mapping[str, nn.Module]) -> None:
        """Raise ``DeltaError`` if the settings cannot be met on the layers of an entry (site → layer).

        Called before training, for budgets and bounds that would otherwise fail during it.
        """
        return None

    @classmethod
    def summed(cls, parts: Sequence[DeltaTensors]) -> DeltaTensors | None:
        """One delta whose change is the sum of those of ``parts``, all of this class; None if no such delta exists."""
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
        """The changed layer's output for an input ``x``, computed in a cheaper way; None if there is none.

        ``frozen(layer, "weight")`` is the weight before any change; ``layer.bias`` is the bias after all changes.
        """
        return None

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        """The form of a Linear or conv after this change; None if there is none.

        With it, a bank serves images with different deltas in one pass. Layers with few weights, depthwise convs and
        norms, need none. Tests compare it with the definition.

        Args:
            form: of the changes before this one, such as ``ActivationForm()``.
            weight: with these changes, [out, in/g, kh, kw] or [out, in].

        Returns:
            The new form; the bias is no part of it.
        """
        return None


class StructuralDelta(Delta):
    """Modules attached to named blocks, or to the whole backbone; not mergeable.

    ``attach`` registers bound methods of this module as hooks of the backbone; a deepcopy of the backbone copies them
    together with the module. The caller adds the module as a child of the backbone.

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

    def parts(self) -> dict[str, nn.Module]:
        """Name of a block of the backbone → what is attached to it; empty for a delta of the whole backbone."""
        return {}

    def is_identity(self) -> bool:
        """Whether it leaves the backbone's output unchanged, as before training. Such a delta is not exported."""
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
    """Bytes of the tensors' values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stored_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state; a tensor under several names, such as of a delta of weight and bias, counts once."""
    return tensor_bytes({tensor.data_ptr(): tensor for tensor in state.values()}.values())


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
    "stored_bytes",
    "tensor_bytes",
]
