"""Creates timm models, ours among them, and gives the filter that timm's loader applies to their checkpoints."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from distill.models.weights import NetworkError

State = dict[str, Tensor]
Filter = Callable[[State], State]
"""Gives the tensors of a checkpoint the names and shapes of a model."""

_LOCK = threading.Lock()


def timm_with_own_models() -> Any:
    """timm with our own architectures: ``ddl_*``, ``*_cifar``, ``lenet_20_50``, and heads that timm does not have."""
    import timm

    import distill.models.cifar
    import distill.models.closed_form_head_entry
    import distill.models.ddl_resnet
    import distill.models.ddl_vit
    import distill.models.emulator_entry
    import distill.models.lenet
    import distill.models.resnet18
    import distill.models.reused_head_entry  # noqa: F401

    return timm


def make_model(name: str, size: int | None, **arguments: Any) -> nn.Module:
    """timm's model at an input size. CNNs take any size; ViTs fix their patch grid when they are created.

    Args:
        name: as ``timm.create_model`` takes it.
        size: height and width of the input in pixels; None: the model's own.
        arguments: of ``timm.create_model``.

    Returns:
        The model.

    Raises:
        NetworkError: timm cannot create it.
    """
    timm = timm_with_own_models()
    config = timm.get_pretrained_cfg(name) if ":" not in name else None
    fixed = config is not None and config.fixed_input_size
    if fixed and size is not None:
        arguments["img_size"] = size
    try:
        model = timm.create_model(name, **arguments)
    except Exception as error:  # all errors that timm raises here concern the name, the folder or the size
        raise NetworkError(f"{name}{f' at {size} pixels' if fixed and size else ''}: {error}") from error
    if not fixed and size is not None:
        resize(model, size)
    return model


def make_model_and_filter(name: str, size: int | None, **arguments: Any) -> tuple[nn.Module, Filter]:
    """timm's model without weights, and the filter that timm's loader applies to checkpoints of its architecture.

    The filter renames keys of older versions and of the original authors, and resamples position embeddings, relative
    position biases and patch embeddings to the size of the model.

    Args:
        name: as ``timm.create_model`` takes it.
        size: height and width of the input in pixels; None: the model's own.
        arguments: of ``timm.create_model``.

    Returns:
        The model, and the filter, which leaves its argument as it is.

    Raises:
        NetworkError: timm cannot create the model.
    """
    from timm.models import _builder

    filters: list[Any] = []

    def keep_filter(*_: Any, filter_fn: Any = None, **__: Any) -> None:
        filters.append(filter_fn)

    # timm hands the filter of an architecture to its loader and to nothing else, so the loader is replaced meanwhile.
    with _LOCK:
        load = _builder.load_pretrained
        _builder.load_pretrained = keep_filter
        try:
            model = make_model(name, size, pretrained=True, **arguments)
        finally:
            _builder.load_pretrained = load
    given = filters[-1] if filters else None
    if given is None:
        return model, dict
    takes_model = len(inspect.signature(given).parameters) > 1

    def adapt(state: State) -> State:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about timm's own code, such as how it indexes tensors
            return given(dict(state), model) if takes_model else given(dict(state))

    return model, adapt


def resize(model: nn.Module, size: int) -> None:
    """Resample a ViT's patch grid to another input size; a model that takes any size stays as it is."""
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)  # type: ignore[operator]


def new_classifier(model: nn.Module, num_classes: int | None) -> None:
    """Give a timm model a freshly initialized classifier of this width; None keeps its own."""
    if num_classes is not None:
        model.reset_classifier(num_classes)  # type: ignore[operator]
