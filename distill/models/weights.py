"""Checks that weights fit a model, and that the model hub is reachable."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit

from torch import Tensor

from augment.base import UserError
from distill.models.embedded import EMBEDDED

_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
_SHOWN = 20


class NetworkError(UserError, ValueError):
    """A network cannot be created; the message names the model or file and what would work."""


def check_fits(own: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Check that a state dict fits a model, before anything is loaded.

    Args:
        own: the model's ``state_dict()``.
        state: the tensors to load.
        source: what they come from, for the message.

    Raises:
        NetworkError: lists tensors that are missing, unexpected or of another shape.
    """
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if problems:
        more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise NetworkError(f"{source} does not fit the architecture:\n  " + "\n  ".join(problems[:_SHOWN] + more))


def check_reachable(name: str) -> None:
    """Raise within seconds if weights are neither cached nor reachable; the hub client alone would retry for minutes.

    Args:
        name: a timm model name with pretrained weights, or ``hf-hub:OWNER/NAME``.

    Raises:
        NetworkError: names the model and what would work instead.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache

    revision = ""
    if name.startswith("hf-hub:"):
        repository, _, revision = name.removeprefix("hf-hub:").partition("@")
    else:
        config = timm.get_pretrained_cfg(name)
        if config is None or not (config.hf_hub_id or config.url):
            raise NetworkError(f"timm has no pretrained weights for {name!r}; set pretrained: false or a checkpoint")
        repository = config.hf_hub_id or ""
    if repository and any(
        isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in _HUB_FILES
    ):
        return
    try:
        reach_hub()
    except OSError as error:
        raise NetworkError(
            f"the weights of {name!r} are not in the local cache, and the model hub is out of reach ({error}). Run "
            "once with a connection, or set checkpoint: FILE, or model: local-dir:FOLDER, or model: embedded:"
            + "|".join(EMBEDDED)
        ) from error


def reach_hub(seconds: float = 5.0) -> str:
    """Connect to the model hub, or to the proxy on the way there, and return its host name.

    Raises:
        OSError: no connection within ``seconds``, or ``HF_HUB_OFFLINE`` is set.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    endpoint = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or constants.ENDPOINT)
    address = (endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80))
    failure: list[OSError] = [TimeoutError(f"no answer from {address[0]} in {seconds:g} s")]

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            failure.clear()
        except OSError as error:
            failure[0] = error

    # In a thread, because looking up a host name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    return address[0]
