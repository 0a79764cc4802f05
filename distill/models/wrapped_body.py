"""Our own entry points for timm wrap a network of another one, the body; it may be wrapped itself.

``timm.create_model("reused_head", body="emulator", body_args={"body": "resnet50", "dropped": …}, width=2048)`` is a
reused head on an emulator. The arguments come from folders of others, so they name an architecture and nothing that is
read from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distill.models.weights import NetworkError

OF_WRAPPERS = ("body", "body_args", "dropped", "middle", "width", "factor", "head")
"""Arguments of our entry points, which an entry point around them has too."""
READING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Arguments of ``timm.create_model`` that load weights from elsewhere."""


def wrapping(body: str, own: Mapping[str, Any], body_args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an entry point around a network.

    Args:
        body: architecture of the network.
        own: arguments of the entry point.
        body_args: those of the network. If it is wrapped itself, those of its entry point are nested, since they have
            the same names.

    Returns:
        Arguments of ``timm.create_model``.
    """
    if "body" not in body_args:
        return {"body": body, **own, **body_args}
    nested = {name: value for name, value in body_args.items() if name in OF_WRAPPERS}
    flat = {name: value for name, value in body_args.items() if name not in OF_WRAPPERS}
    return {"body": body, **own, "body_args": nested, **flat}


def create_body(body: str, body_args: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> nn.Module:
    """The network in an entry point, with random weights.

    Args:
        body: its architecture.
        body_args: its nested arguments, see :func:`wrapping`.
        arguments: its other ones.

    Returns:
        timm's model.

    Raises:
        NetworkError: the body is no architecture of timm, or an argument would read weights from elsewhere.
    """
    import timm

    if not isinstance(body, str) or not timm.is_model(body):
        raise NetworkError(f"body: {body!r} is no architecture of timm")
    arguments = {**(body_args or {}), **arguments}
    if reading := [name for name in READING if name in arguments]:
        raise NetworkError(f"{reading[0]}: the body {body!r} has no weights of its own, so leave {reading[0]} out")
    return timm.create_model(body, **arguments)
