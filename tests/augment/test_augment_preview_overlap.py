"""What views share: hand-made crops whose overlap is known, and colors whose distance is known."""

import math

import pytest
import torch

from augment.dual import AugmentSettings, DualAugment
from augment.preview import view_overlap
from augment.preview.overlap import coordinates
from augment.views import InputSpec

SPEC = InputSpec((48, 48))
IDS = torch.arange(4)
NOISE = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
GRAY = torch.full((4, 3, 96, 96), 128, dtype=torch.uint8)


class Part:
    """A user's operation: rows from ``top`` and columns from ``left`` on, as shares of the sides."""

    geometric = True

    def __init__(self, top: float = 0.0, left: float = 0.0, side: float = 1.0):
        self.box = top, left, side

    def __call__(self, images):
        height, width = images.shape[-2:]
        top, left, side = self.box
        part = images[..., round(top * height) : round((top + side) * height), :]
        return part[..., round(left * width) : round((left + side) * width)]


class Darker:
    def __call__(self, images):
        return images / 2


def shared(teacher, student, policy="independent", images=GRAY, teachers=(SPEC,), epoch=0):
    settings = AugmentSettings(policy=policy, student=student, teacher=teacher)
    return view_overlap(DualAugment(settings, teachers, SPEC, 0), images, IDS, epoch)


def part(**box):
    return {"type": f"{__name__}:Part", **box}


@pytest.mark.parametrize(
    ("teacher", "student", "overlap"),
    [
        ([], [], 1.0),
        ([part(side=0.5)], [], 0.25),
        ([part(side=0.5)], [part(side=0.5, left=0.25)], 1 / 3),
        ([part(side=0.5)], [part(side=0.5, left=0.5, top=0.5)], 0.0),
        ([part(side=0.75)], [part(side=0.75, left=0.25, top=0.25)], 0.25 / (2 * 0.5625 - 0.25)),
        (["RandomVerticalFlip"], [{"type": "RandomHorizontalFlip", "p": 1.0}], 1.0),
    ],
)
def test_overlap_is_that_of_the_parts_of_the_original(teacher, student, overlap):
    actual = shared(teacher, student)
    torch.testing.assert_close(actual.overlap, torch.full((4,), overlap), rtol=0, atol=0.02)


def test_without_a_common_point_there_is_no_color_to_compare():
    actual = shared([part(side=0.5)], [part(side=0.5, left=0.5)])
    assert actual.overlap.max() == 0 and actual.color.isnan().all()
    assert str(actual) == "crops overlap 0% (intersection over union) · no point in common"


def test_color_is_compared_at_the_same_point_of_the_original():
    flipped = shared([], [{"type": "RandomHorizontalFlip", "p": 1.0}], images=NOISE)
    assert flipped.color.max() < 0.01, "the same pixels elsewhere are no other colors"
    darker = shared([], [f"{__name__}:Darker", part(side=0.5, top=0.25)])
    # CIELAB's L of gray 128/255 and of half of it: 116·f(Y) - 16, f the cube root.
    linear = [((v + 0.055) / 1.055) ** 2.4 for v in (128 / 255, 64 / 255)]
    lightness = [116 * math.cbrt(y) - 16 for y in linear]
    torch.testing.assert_close(darker.color, torch.full((4,), lightness[0] - lightness[1]), rtol=0, atol=0.05)
    assert str(darker).endswith("colors there differ by ΔE 26.5")


def test_small_views_cover_as_much_as_large_ones():
    """A view of 12 pixels that shows the whole image overlaps wholly with one of 48."""
    actual = view_overlap(
        DualAugment(AugmentSettings(policy="independent", student=[], teacher=[]), (InputSpec((12, 12)),), SPEC, 0),
        GRAY,
        IDS,
        0,
    )
    assert actual.overlap.min() > 0.99


def test_what_policies_promise_can_be_read_off():
    crop = {"type": "RandomResizedCrop", "scale": [0.2, 0.5]}
    jitter = {"type": "ColorJitter", "brightness": 0.5}
    geometry = shared(None, [crop, jitter], "shared_geometry", NOISE)
    assert geometry.overlap.min() == 1 and geometry.color.min() > 0.5
    identical = shared(None, [crop, jitter], "identical", NOISE)
    assert identical.overlap.min() == 1 and identical.color.max() == 0
    apart = shared(None, [crop, jitter], "independent", NOISE)
    assert apart.overlap.max() < 0.9
    both = shared(None, [crop, jitter], "both_to_both", NOISE)
    assert ((both.overlap > 0.5) & (both.overlap < 1)).all(), "two of its four pairs are a view with itself"


def test_overlap_of_rotated_squares():
    """A square turned by 45° about its center covers 2(√2 - 1) of itself: π/4's octagon."""
    rotation = {"type": "RandomRotation", "degrees": [45.0, 45.0], "p": 1.0}
    actual = shared([rotation], [])
    torch.testing.assert_close(actual.overlap, torch.full((4,), 2 * (2**0.5 - 1)), rtol=0, atol=0.02)


def test_without_a_teacher_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="without a teacher"):
        shared(None, [], teachers=())


def test_coordinates_are_pixel_centers():
    grid = coordinates(2, (2, 4))
    assert grid[1, 0, 0].tolist() == [0.125, 0.375, 0.625, 0.875] and grid[0, 1, :, 3].tolist() == [0.25, 0.75]
    assert (grid[:, 2] == 1).all()
