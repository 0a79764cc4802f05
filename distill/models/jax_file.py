"""Loads an archive of JAX arrays (``.npz``), as Google's ViT and BiT code writes them, through timm's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from distill.models.timm_models import make_model, new_classifier
from distill.models.weights import NetworkError

SUFFIX = ".npz"
_UNREAD = 2.0**100
"""Fills a network before the file is read, so that what is not read can be told."""


def load_jax_file(name: str, path: Path, size: int | None, num_classes: int | None) -> nn.Module:
    """The architecture with the weights of an archive.

    Args:
        name: of the architecture.
        path: of the archive; objects in it are not unpickled.
        size: height and width of the input; None: the architecture's own.
        num_classes: width of a new classifier; None keeps the file's.

    Returns:
        The model.

    Raises:
        NetworkError: the file cannot be read, timm has no reader for this architecture, or tensors are missing.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            widths = [
                len(arrays[key].reshape(-1)) for key in arrays.files if key.endswith(("head/bias", "conv2d/bias"))
            ]
    except Exception as error:
        raise NetworkError(f"{path} cannot be read, or is damaged: {error}") from error
    model = make_model(name, size, num_classes=widths[0] if widths else 0)
    if not hasattr(model, "load_pretrained"):
        raise NetworkError(f"{path}: timm reads archives of JAX arrays for ViTs and BiT ResNets, not for {name}")
    state = {key: tensor for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    with torch.no_grad():
        for tensor in state.values():
            tensor.fill_(_UNREAD)
    try:
        with path.open("rb") as file:  # timm leaves a file open that it opens itself
            model.load_pretrained(file)  # type: ignore[operator]
    except Exception as error:
        raise NetworkError(f"{path} does not fit {name}: {type(error).__name__}: {error}") from error
    if missing := [key for key, tensor in state.items() if bool((tensor == _UNREAD).any())]:
        raise NetworkError(f"{path} does not fit {name}; it lacks {', '.join(missing[:5])} ({len(missing)} tensors)")
    new_classifier(model, num_classes)
    return model
