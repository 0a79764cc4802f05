"""Which layers peft changes exactly as a delta does.

peft computes a layer's change beside the layer, in a conv or Linear of the layer's own class. So it is exact for
classes whose ``forward`` is that of torch's Linear or Conv2d (or timm's Conv2dSame), without dilation, and not for
those that first standardize the weight.
"""

from __future__ import annotations

from torch import Tensor, nn


def refusal(layer: nn.Module, expand: bool, method: str) -> str:
    """Why peft cannot change a layer as a delta does; empty if it can.

    Args:
        layer: a Linear or Conv2d.
        expand: whether the factor A of a grouped conv may become a whole conv.
        method: "low_rank", "dora" or "ia3".

    Returns:
        The reason, for a message that names the layer.
    """
    from timm.layers import Conv2dSame
    from timm.layers import Linear as TimmLinear

    name = type(layer).__name__
    plain = (nn.Linear.forward, nn.Conv2d.forward, Conv2dSame.forward, TimmLinear.forward)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"is a {name}, and peft changes Linear and Conv2d"
    if type(layer).forward not in plain:
        return f"is a {name}, which computes with another weight than its own"
    if isinstance(layer, nn.Linear) or method == "ia3":
        return ""
    if layer.padding_mode != "zeros" or any(size != 1 for size in layer.dilation):
        return "has dilation or padding that peft leaves out"
    if layer.groups > 1 and method == "dora":
        return f"has {layer.groups} groups, and peft's DoRA has no form for them"
    if layer.groups > 1 and not expand:
        return f"has {layer.groups} groups; --expand makes A a whole conv, {layer.groups} times as large"
    return ""


def row_lengths(weight: Tensor) -> Tensor:
    """[out], ‖W_o‖ of every row in fp64, so that magnitudes go both ways without a change."""
    return weight.detach().double().flatten(1).norm(dim=1)
