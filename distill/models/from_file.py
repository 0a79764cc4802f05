"""Creates a network from the file of a checkpoint, at the file's number of classes and input size where it has them."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import nn

from distill.models.checkpoint import find_weights, load_weights
from distill.models.checkpoint_file import Checkpoint
from distill.models.timm_models import State, make_model, make_model_and_filter, new_classifier
from distill.models.weights import NetworkError

_SIZES = (32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 416, 448, 480, 512, 518, 576, 640)
"""Input sizes that the error of a file that does not fit tries."""


def load_from_file(
    name: str, checkpoint: Checkpoint, prefix: str | None, size: int | None, num_classes: int | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The architecture with a file's weights: created with the file's classes, then given ``num_classes``.

    Args:
        name: of the architecture.
        checkpoint: the file.
        prefix: of the names in the file; None: the one that fits.
        size: height and width of the input; None: the architecture's own.
        num_classes: width of a new classifier; None keeps the file's, or none if the file has none.

    Returns:
        The model, and what a user should know about how the file was read.
    """
    name, variant = _variant(name, checkpoint)
    arguments = _trained_arguments(name, checkpoint)
    model, adapt = make_model_and_filter(name, size, **arguments)
    weights = find_weights(checkpoint, model, adapt, prefix)
    form = {"num_classes": weights.classes, "in_chans": _channels(model, weights.state)}
    here = {"num_classes": model.num_classes, "in_chans": None}
    if form := {key: value for key, value in form.items() if value not in (None, here[key])}:
        arguments = {**arguments, **form}
        model, adapt = make_model_and_filter(name, size, **arguments)
        weights = find_weights(checkpoint, model, adapt, prefix)
    try:
        load_weights(model, weights, str(checkpoint.path))
    except NetworkError as error:
        sizes = _size_that_fits(name, arguments, model, weights.state)
        failure = [f"timm's filter for its checkpoints failed: {weights.failure}"] if weights.failure else []
        hints = [*failure, *_foreign_names(model, weights.state), *_trained_as(name, checkpoint), *sizes]
        raise NetworkError("\n  ".join([str(error), *hints])) from error
    _keep_preprocessing(model, checkpoint)
    if weights.classes is None and num_classes is None:
        num_classes = 0
    new_classifier(model, num_classes)
    headless = () if weights.classes is not None else (f"{checkpoint.path.name} has no head",)
    return model, tuple(f"{checkpoint.path.name}: {note}" for note in (*variant, *weights.notes)) + headless


def _variant(name: str, checkpoint: Checkpoint) -> tuple[str, tuple[str, ...]]:
    """The CIFAR ResNet with padded shortcuts if the file is for that one, and a note that says so."""
    from distill.models.cifar import padded_variant

    padded = padded_variant(name, checkpoint.tensors)
    return (name, ()) if padded is None else (padded, (f"its shortcuts have no weights, so it is read as {padded}",))


def _channels(model: nn.Module, state: State) -> int | None:
    """The number of channels that a file's first layer reads, if the model's reads another."""
    first = model.pretrained_cfg.get("first_conv")  # type: ignore[union-attr, operator]
    layer = dict(model.named_modules()).get(first) if isinstance(first, str) else None
    weight = state.get(f"{first}.weight")
    if not isinstance(layer, nn.Conv2d) or weight is None or weight.ndim != 4 or layer.groups != 1:
        return None
    return None if weight.shape[1] == layer.in_channels else weight.shape[1]


def trained_size(checkpoint: Checkpoint) -> int | None:
    """The input size with which timm's training script wrote a checkpoint; None if it is not known or not square."""
    height, width = (checkpoint.options.get("input_size") or [None, None, None])[1:]
    side = height or checkpoint.options.get("img_size")
    return side if isinstance(side, int) and width in (None, side) else None


def _trained_arguments(name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Arguments of ``create_model`` with which timm's training script made a checkpoint of this architecture."""
    options = checkpoint.options
    if options.get("model") != name:
        return {}
    pooling = {"global_pool": options["gp"]} if isinstance(options.get("gp"), str) else {}
    channels = {"in_chans": options["in_chans"]} if isinstance(options.get("in_chans"), int) else {}
    return {**pooling, **channels, **(options.get("model_kwargs") or {})}


def _keep_preprocessing(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Take over the normalization and test transform that timm's training script was given, if it was."""
    config: Any = model.pretrained_cfg
    given = {key: checkpoint.options.get(key) for key in ("mean", "std", "interpolation", "crop_pct")}
    model.pretrained_cfg = {**config, **{key: value for key, value in given.items() if value}}  # type: ignore[assignment]


def _foreign_names(model: nn.Module, state: State) -> list[str]:
    """Some names of a file, if none of them is the model's."""
    if model.state_dict().keys() & state.keys() - {key for key in state if key.endswith("num_batches_tracked")}:
        return []
    config: Any = model.pretrained_cfg
    return [f"none of its names is one of {config['architecture']}: it has {', '.join(list(state)[:3])}, …"]


def _trained_as(name: str, checkpoint: Checkpoint) -> list[str]:
    """The architecture of a checkpoint that timm's training script wrote, if it is another one."""
    trained = checkpoint.options.get("model")
    return [f"it was written by a training of {trained}"] if trained and trained != name else []


def _size_that_fits(name: str, arguments: dict[str, Any], model: nn.Module, state: State) -> list[str]:
    """``size: N fits`` for an input size at which tensors of the model's names have its shapes, if there is one."""
    own = model.state_dict()
    others = [key for key in own if key in state and own[key].shape != state[key].shape]
    if not others or own.keys() != state.keys():
        return []
    mismatched = {key: state[key] for key in others}
    sizes = (size for size in _SIZES if _fits(name, size, arguments, model, mismatched))
    return [f"size: {size} fits" for size in islice(sizes, 1)]


def _fits(name: str, size: int, arguments: dict[str, Any], model: nn.Module, state: State) -> bool:
    """Whether tensors have the shapes of the model at another input size."""
    try:
        with torch.device("meta"):
            other = make_model(name, size, **{**arguments, "num_classes": model.num_classes}).state_dict()
    except NetworkError:
        return False
    return all(key in other and other[key].shape == tensor.shape for key, tensor in state.items())
