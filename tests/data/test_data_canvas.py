"""How images are fitted to the canvas."""

import numpy as np
import pytest
from encoded_images import W, picture
from PIL import Image

from distill.data.canvas import PADDING, Canvas


def test_canvas_keeps_what_fits() -> None:
    square = picture()[:, 2:8]
    assert Canvas((6, 6))(square) is square
    assert np.array_equal(Canvas((6, 6), "crop")(picture()), square)
    padded = Canvas((W, W), "pad")(picture())
    assert np.array_equal(padded[2:8], picture()) and (padded[[0, 1, 8, 9]] == PADDING).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (37, 53), (500, 400)])
def test_canvas_has_a_fixed_shape(fit: str, shape: tuple[int, int]) -> None:
    canvas = Canvas((32, 32), fit)(np.full((*shape, 3), 77, np.uint8))  # type: ignore[arg-type]
    assert canvas.shape == (32, 32, 3) and canvas.dtype == np.uint8
    assert (canvas[15:17, 15:17] == 77).any()


def test_crop_is_resize_of_the_short_side_and_center_crop() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (10, 16, 3), dtype=np.uint8)).resize((160, 100))
    plain = smooth.resize((64, 40), Image.Resampling.BICUBIC).crop((12, 0, 52, 40))
    assert np.abs(Canvas((40, 40))(np.asarray(smooth)).astype(int) - np.asarray(plain)).max() <= 1
