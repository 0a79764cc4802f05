"""timm's entry point for emulators, networks whose middle has lost blocks.

``timm.create_model("emulator", body="resnet50", dropped=["layer3.1"], middle=["layer3.0", "layer3.1", "layer3.2"])``
creates one. The folder of an emulator has this architecture, see :mod:`distill.models.emulator`. Importing this module
registers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from distill.models.emulator import ARCHITECTURE, drop_blocks
from distill.models.wrapped_body import create_body

default_cfgs = generate_default_cfgs({ARCHITECTURE: {}})


def _build(
    body: str, dropped: Sequence[str], middle: Sequence[str], body_args: dict[str, Any] | None = None, **arguments: Any
) -> nn.Module:
    network: Any = drop_blocks(create_body(body, body_args, arguments), dropped)
    network.owners_blocks = tuple(middle)
    network.body_cfg = network.pretrained_cfg  # timm overwrites it
    return network


@register_model
def emulator(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's ``body`` without the blocks ``dropped``; no delta can change the blocks ``middle``."""
    network: Any = build_model_with_cfg(_build, ARCHITECTURE, pretrained, **arguments)
    if not network.pretrained_cfg["classifier"]:  # without a folder that gives the input, it is that of the body
        network.pretrained_cfg = network.default_cfg = {**network.body_cfg, "architecture": ARCHITECTURE}
    return network
