"""timm's entry point for networks with a reused head.

``timm.create_model("reused_head", body="resnet18", width=2048)`` creates one.

Merged folders of such students have this architecture. Importing this module registers it.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from distill.models.reused_head import ARCHITECTURE, reuse_head
from distill.models.settings import ReusedHead
from distill.models.wrapped_body import create_body

default_cfgs = generate_default_cfgs({ARCHITECTURE: {}})


def _build(
    body: str, width: int, factor: int = 2, body_args: dict[str, Any] | None = None, **arguments: Any
) -> nn.Module:
    network: Any = create_body(body, body_args, arguments)
    reuse_head(network, ReusedHead(width=width, factor=factor))
    network.get_classifier().requires_grad_(True)  # a network that timm builds can be trained in full
    network.body_cfg = network.pretrained_cfg  # timm overwrites it
    return network


@register_model
def reused_head(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's ``body`` with three convs to ``width`` channels, pooling, and a linear classifier of that many inputs."""
    network: Any = build_model_with_cfg(_build, ARCHITECTURE, pretrained, **arguments)
    if not network.pretrained_cfg["classifier"]:  # without a folder that gives the input, it is that of the body
        network.pretrained_cfg = network.default_cfg = {**network.body_cfg, "architecture": ARCHITECTURE}
    return network
