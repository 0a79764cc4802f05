"""timm's entry point for networks with a classifier that was fitted in closed form.

``timm.create_model("closed_form_head", body="resnet18", head={"type": "random_ridge", …})`` creates one. Importing this
module registers it.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from distill.models.closed_form_head import ARCHITECTURE, give_head, make_head
from distill.models.wrapped_body import create_body

default_cfgs = generate_default_cfgs({ARCHITECTURE: {}})


def _build(body: str, head: dict[str, Any], body_args: dict[str, Any] | None = None, **arguments: Any) -> nn.Module:
    network: Any = create_body(body, body_args, arguments)
    give_head(network, make_head(head, network.num_classes), network.num_classes)
    network.body_cfg = network.pretrained_cfg  # timm overwrites it
    return network


@register_model
def closed_form_head(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """timm's ``body`` with a classifier that was fitted in closed form."""
    network: Any = build_model_with_cfg(_build, ARCHITECTURE, pretrained, **arguments)
    if not network.pretrained_cfg["classifier"]:  # without a folder that gives the input, it is that of the body
        network.pretrained_cfg = network.default_cfg = {**network.body_cfg, "architecture": ARCHITECTURE}
    return network
