"""Operations on one image and the boxes in it: what moves pixels moves the boxes, by the same map.

    >>> import torch
    >>> from augment.boxes import BoxChain
    >>> from augment.draws import Draws
    >>> from augment.recipe import Op
    >>> chain = BoxChain([Op.of("RandomHorizontalFlip", p=1.0)])
    >>> draws = Draws(0, 0, "train", torch.tensor([7]))
    >>> image, boxes, kept = chain(torch.rand(1, 3, 8, 10), torch.tensor([[1.0, 2, 4, 5]]), draws)
    >>> boxes
    tensor([[6., 2., 9., 5.]], dtype=torch.float64)

Box coordinates are left, top, right, bottom in pixels, and the image's corners are (0, 0) and (W, H); the centers of
its pixels, between which homographies map, are half a pixel inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from augment.draws import Draws
from augment.fuse.geometry import inverse, output_size, pullback
from augment.fuse.program import to_unit
from augment.names import OperationError
from augment.operation import Operation, SampledOp
from augment.recipe import Op, built
from augment.steps import Steps, alone

VISIBLE = 0.2
"""Least fraction of a box's area that must stay in the image; boxes of which less is left are dropped."""


class BoxChain(nn.Module):
    """A recipe that keeps boxes on their objects.

    ``forward(image [1, C, H, W], boxes [N, 4], draws) → (image [1, C, h, w], boxes [M, 4] float64, kept [N] bool)``.
    A box is mapped by its four corners to the smallest upright box around them: exactly for flips, crops and scalings,
    and too large for rotations. It is then cut off at the border. Draws are keyed as in :class:`augment.chain.Chain`.

    Args:
        recipe: operations; those that move pixels must declare ``affine``, see :mod:`augment.operation`.
        visible: least fraction of a box's area that must stay in the image; others are dropped (``kept`` is false).

    Raises:
        OperationError: an operation moves pixels in a way that it does not declare, or needs a network's input size.
    """

    def __init__(self, recipe: Sequence[Op | Callable[..., Any]], visible: float = VISIBLE):
        super().__init__()
        operations = []
        for item in recipe:
            if isinstance(item, Op) and item.follows_network_size:
                raise OperationError("size", f"{item.type} needs its argument 'size': images here have different sizes")
            operations.append(built(item))
            check_moves_boxes(operations[-1])
        self.steps = Steps(operations, engine="fused", compile=False)
        self.visible = visible

    def extra_repr(self) -> str:
        return f"operations={len(self.steps)}, visible={self.visible}"

    @torch.no_grad()
    def forward(self, image: Tensor, boxes: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        if image.ndim != 4 or len(image) != 1 or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"expected one image [1, C, H, W] and boxes [N, 4], not {image.shape} and {boxes.shape}")
        x, moved = to_unit(image), boxes.double()
        kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        for step in self.steps.steps:
            operation = step.operation
            if operation.geometric:
                assert isinstance(operation, SampledOp)
                params = operation.sample(draws.op(step.key), x.shape)
                back = pullback(operation.user, params, x.shape)
                size = output_size(operation.user, x.shape)
                x = operation.run(x, params)
                moved, visible = moved_boxes(moved, inverse(back)[0], size)
                kept &= visible >= self.visible
            else:
                x = to_unit(alone(step, x, draws, draws))
        return x.clamp(0, 1), moved[kept], kept


def moved_boxes(boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes after a homography, cut off at the border.

    Args:
        boxes: [N, 4]: left, top, right, bottom.
        matrix: [3, 3], source pixel → destination pixel, centers at integers.
        size: (height, width) of the destination.

    Returns:
        [N, 4] float64, and the fraction [N] of each box's area after the map that is inside.
    """
    left, top, right, bottom = (boxes.double() - 0.5).unbind(1)
    corners = torch.stack([torch.stack([x, y, torch.ones_like(x)], 1) for x in (left, right) for y in (top, bottom)], 1)
    mapped = corners @ matrix.double().T  # [N, 4, 3]
    flat = mapped[..., :2] / mapped[..., 2:] + 0.5
    whole = torch.cat([flat.amin(1), flat.amax(1)], 1)
    limits = whole.new_tensor([size[1], size[0]]).repeat(2)
    inside = whole.clamp(min=0).minimum(limits)
    return inside, _area(inside) / _area(whole).clamp(min=1e-12)


def check_moves_boxes(operation: Operation) -> None:
    """Raise ``OperationError`` if an operation moves pixels and boxes cannot follow it."""
    if operation.geometric and not (isinstance(operation, SampledOp) and operation.form == "affine"):
        raise OperationError(
            "type",
            f"{operation.name} moves pixels and does not declare where to ('affine'), so boxes cannot follow it; flips,"
            " crops, RandomAffine and the other fused geometric operations can be used, not inside a container",
        )


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
