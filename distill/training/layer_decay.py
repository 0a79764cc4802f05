"""Layer-wise learning-rate decay: early layers, whose features are general, learn more slowly than late ones."""

from __future__ import annotations

from collections.abc import Iterator

from timm.models._manipulate import group_with_matcher
from torch import nn

from distill.deltas.attach import deltas
from distill.deltas.base import StructuralDelta


def layer_scales(model: nn.Module, decay: float) -> dict[int, float]:
    """The factor of each parameter's learning rate: ``decay ** (last layer − layer of the parameter)``.

    Clark et al., "ELECTRA", ICLR 2020 (arXiv 2003.10555), and BEiT (arXiv 2106.08254); the layers and the factors are
    those of timm's ``param_groups_layer_decay``: embedding or stem, each block, and the head with all that is no block.
    A delta belongs to the layer that it changes, an adapter to the block that it is attached to, and a delta of the
    whole network to the last layer.

    Args:
        model: a timm model, with or without deltas.
        decay: factor from each layer to the one before it, in (0, 1].

    Returns:
        Python id of a parameter → factor, for all parameters of the model.

    Raises:
        ValueError: the model does not declare the order of its layers (timm's ``group_matcher``).
    """
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ValueError(
            f"training.optimizer.layer_decay: {type(model).__name__} does not declare the order of its layers (timm's "
            "group_matcher); leave layer_decay out, or use another network"
        )
    layers = group_with_matcher(_by_layer_name(model), matcher(coarse=False), return_values=True)
    last = max(layers)
    return {id(parameter): decay ** (last - layer) for layer, own in layers.items() for parameter in own}


def _by_layer_name(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters by name; those of structural deltas by the last name in the block that they are attached to."""
    names = [name for name, _ in model.named_parameters()]
    places = {
        id(parameter): [name for name in names if name.startswith(f"{block}.")][-1:]
        for site in deltas(model)
        if isinstance(site.delta, StructuralDelta)
        for block, part in site.delta.parts().items()
        for parameter in part.parameters()
    }
    for name, parameter in model.named_parameters():
        yield (places.get(id(parameter)) or [name])[0], parameter
