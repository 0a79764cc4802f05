"""Composed geometry against an analytic warp."""

import pytest
import torch
from augment_chains import (
    CROP,
    FLIP,
    TURN,
    chain,
    draws,
)

from augment.fuse.geometry import composed, coverage, inverse, warp


def wave(x, y):
    """A smooth image, known between its pixels."""
    return 0.5 + 0.25 * torch.sin(0.35 * x + 0.2) + 0.25 * torch.cos(0.3 * y - 0.1 * x)


@pytest.mark.parametrize(
    "recipe",
    [
        [CROP, FLIP],
        [TURN, CROP],
        [TURN, {"type": "RandomAffine", "degrees": 20, "scale": [0.8, 1.2], "shear": 10, "p": 1.0}, FLIP],
        [{"type": "RandomPerspective", "p": 1.0, "distortion_scale": 0.3}, TURN, "RandomVerticalFlip"],
        [{"type": "Resize", "size": [48, 48]}, TURN, {"type": "RandomCrop", "size": [32, 32]}],
    ],
)
def test_composing_is_more_exact_than_resampling_twice(recipe):
    """Against the image that the map of coordinates gives without any pixels in between, away from the border."""
    side = 40
    y, x = torch.meshgrid(torch.arange(side) * 1.0, torch.arange(side) * 1.0, indexing="ij")
    images = wave(x, y).expand(6, 1, side, side).contiguous()
    first = chain(*recipe, size=(side, side))
    shape, steps, stepwise = images.shape, [], images
    for step in first.steps:
        params = step.operation.sample(draws(6).op(step.key), shape)
        steps.append((step.user, params))
        stepwise = step.operation.run(stepwise, params)
        shape = stepwise.shape
    back, size, frames = composed(steps, images.shape)
    once = warp(images, back, size, frames)
    assert once.shape == stepwise.shape
    v, u = torch.meshgrid(torch.arange(size[0]) * 1.0, torch.arange(size[1]) * 1.0, indexing="ij")
    source = back.float() @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    source_x, source_y = ((source[:, n] / source[:, 2]).view(6, *size) for n in (0, 1))
    inside = (source_x > 1) & (source_x < side - 2) & (source_y > 1) & (source_y < side - 2)
    for frame, limits in frames:
        at = frame.float() @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
        at_x, at_y = ((at[:, n] / at[:, 2]).view(6, *size) for n in (0, 1))
        inside &= (at_x > 1) & (at_x < limits[1] - 2) & (at_y > 1) & (at_y < limits[0] - 2)
    exact = wave(source_x, source_y)[inside]
    assert inside.float().mean() > 0.3
    composed_error = (once[:, 0][inside] - exact).abs().mean()
    stepwise_error = (stepwise[:, 0][inside] - exact).abs().mean()
    if len([op for op in recipe if op not in (FLIP, "RandomVerticalFlip")]) > 1:
        assert composed_error < 0.85 * stepwise_error
    assert composed_error < 0.004


def test_what_was_cut_off_stays_cut_off():
    """A crop and then a rotation: black corners, as from kornia, though the source has pixels there."""
    images = torch.ones(6, 3, 40, 40)
    recipe = [{"type": "CenterCrop", "size": [20, 20]}, {"type": "RandomRotation", "degrees": [45.0, 45.0], "p": 1.0}]
    fused, plain = (chain(*recipe, size=(20, 20), engine=engine)(images, draws(6)) for engine in ("fused", "kornia"))
    assert float(fused[:, :, 0, 0].max()) == 0
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)  # of a constant image, also the soft edge


def test_coverage_is_the_bilinear_reading_of_ones():
    x, y = torch.linspace(-2, 9, 23).view(1, 1, -1), torch.linspace(-2, 7, 19).view(1, -1, 1)
    grid = torch.stack(torch.broadcast_tensors((2 * x + 1) / 7 - 1, (2 * y + 1) / 5 - 1), -1)
    ones = torch.nn.functional.grid_sample(torch.ones(1, 1, 5, 7), grid, align_corners=False)
    torch.testing.assert_close(coverage(x, y, (5, 7)), ones, rtol=0, atol=1e-6)


def test_inverse():
    matrices = torch.randn(50, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices))
