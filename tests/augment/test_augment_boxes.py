"""Boxes follow the operations that move pixels."""

import pytest
import torch
from torch import Tensor

from augment.boxes import BoxChain, moved_boxes
from augment.draws import Draws
from augment.names import OperationError
from augment.recipe import Op

BOXES = torch.tensor([[3.0, 2.0, 9.0, 6.0], [0.0, 0.0, 4.0, 10.0]])


def marked(boxes: Tensor) -> Tensor:
    """An image [1, N, 10, 16] whose channel n is 1 in box n."""
    image = torch.zeros(1, len(boxes), 10, 16)
    for n, (left, top, right, bottom) in enumerate(boxes.long().tolist()):
        image[0, n, top:bottom, left:right] = 1
    return image


def around(channel: Tensor) -> list[int]:
    """The smallest box around the ones of a channel."""
    rows, columns = (channel > 0.5).any(1).nonzero()[:, 0], (channel > 0.5).any(0).nonzero()[:, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def draws(epoch: int = 0) -> Draws:
    return Draws(0, epoch, "detector", torch.tensor([7]))


@pytest.mark.parametrize(
    "recipe",
    [
        [Op.of("RandomHorizontalFlip", p=1.0)],
        [Op.of("RandomVerticalFlip", p=1.0), Op.of("RandomHorizontalFlip", p=1.0)],
        [Op.of("RandomCrop", size=[8, 12])],
        [Op.of("RandomHorizontalFlip"), Op.of("RandomCrop", size=[9, 15]), Op.of("RandomVerticalFlip")],
    ],
)
def test_boxes_are_exactly_where_their_pixels_are(recipe: list[Op]) -> None:
    chain = BoxChain(recipe, visible=0.1)
    for epoch in range(4):
        image, boxes, kept = chain(marked(BOXES), BOXES, draws(epoch))
        assert boxes.tolist() == [around(channel) for channel in image[0][kept]]


def test_a_flip_mirrors_fractions_exactly_and_draws_are_keyed() -> None:
    chain = BoxChain([Op.of("RandomHorizontalFlip", p=0.5)])
    box = torch.tensor([[1.25, 2.5, 9.75, 6.125]], dtype=torch.float64)
    made = [chain(torch.rand(1, 3, 10, 16), box, draws(epoch))[1][0].tolist() for epoch in range(12)]
    assert made == [chain(torch.rand(1, 3, 10, 16), box, draws(epoch))[1][0].tolist() for epoch in range(12)]
    flipped = [6.25, 2.5, 14.75, 6.125]
    assert flipped in made and box[0].tolist() in made and all(each in (flipped, box[0].tolist()) for each in made)


def test_rotations_give_the_box_around_the_corners() -> None:
    rotation = torch.tensor([[0.0, -1.0, 9.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # by 90°, of a 10-pixel-high image
    boxes, visible = moved_boxes(BOXES, rotation, (16, 10))
    assert boxes.tolist() == [[4, 3, 8, 9], [0, 0, 10, 4]] and visible.tolist() == [1, 1]


def test_a_box_of_which_little_is_left_is_dropped() -> None:
    shift = torch.tensor([[1.0, 0.0, -7.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    boxes, visible = moved_boxes(BOXES, shift, (10, 16))
    assert visible.tolist() == [0.25, 0.0] and boxes[0].tolist() == [0, 2, 1.5, 6]


def test_colors_leave_boxes_alone_and_unknown_movements_are_refused() -> None:
    image, boxes, kept = BoxChain([Op.of("ColorJitter", brightness=0.5, p=1.0)])(
        torch.rand(1, 3, 10, 16), BOXES, draws()
    )
    assert torch.equal(boxes, BOXES.double()) and kept.all() and image.shape == (1, 3, 10, 16)
    with pytest.raises(OperationError, match="RandomElasticTransform moves pixels and does not declare where to"):
        BoxChain([Op.of("RandomElasticTransform")])
    with pytest.raises(OperationError, match="RandomApply moves pixels"):
        BoxChain([Op.of("RandomApply", transforms=["RandomHorizontalFlip"], p=0.5)])
    with pytest.raises(OperationError, match="RandomResizedCrop needs its argument 'size'"):
        BoxChain([Op.of("RandomResizedCrop")])
    with pytest.raises(ValueError, match="expected one image"):
        BoxChain([])(torch.rand(2, 3, 4, 4), BOXES, draws())
