"""Fused chains of any image size, channel count and dtype; input that cannot be used is named."""

import pytest
import torch
from augment_chains import (
    BLUR,
    CROP,
    ERASE,
    FLIP,
    GRAY,
    JITTER,
    SPEC,
    STRONG,
    TURN,
    Hole,
    Loud,
    Middle,
    chain,
    draws,
    path_of,
    pictures,
)

from augment.chain import ImageError, normalized, to_unit
from augment.draws import Draws
from augment.recipe import Op


@pytest.mark.parametrize("height, width, channels", [(33, 27, 3), (40, 17, 3), (5, 7, 3), (64, 64, 3), (120, 90, 3)])
def test_any_size(height, width, channels):
    first = chain(CROP, FLIP, JITTER, GRAY, {**BLUR, "kernel_size": [3, 3]}, ERASE, TURN, size=(18, 26))
    images = pictures(5, height, width, channels)
    view = first(images, draws(5))
    assert view.shape == (5, 3, 18, 26) and float(view.min()) >= 0 and float(view.max()) <= 1
    torch.testing.assert_close(first(to_unit(images), draws(5)), view, rtol=0, atol=1e-6)
    for n in range(5):
        alone = Draws(0, 0, "student", torch.arange(100 + n, 101 + n))
        torch.testing.assert_close(first(images[n : n + 1], alone), view[n : n + 1], rtol=0, atol=2e-6)


def test_one_channel():
    first = chain(CROP, FLIP, {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4}, GRAY, BLUR, ERASE)
    plain = chain(*[Op.model_validate(op) for op in (CROP, FLIP, GRAY, BLUR, ERASE)], engine="kornia")
    assert first(pictures(channels=1), draws()).shape == (8, 1, 24, 24)
    assert plain(pictures(channels=1), draws()).shape == (8, 1, 24, 24)


def test_an_empty_batch():
    for recipe in (STRONG, [], [path_of(Loud)]):
        assert chain(*recipe)(pictures(0), draws(0)).shape == (0, 3, 24, 24)
        assert chain(*recipe)(pictures(0), draws(0), spec=SPEC, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_last_write_normalizes_and_casts():
    for recipe in (STRONG, [CROP, path_of(Loud)], []):
        first = chain(*recipe)
        pixels = first(pictures(), draws())
        torch.testing.assert_close(first(pictures(), draws(), spec=SPEC), normalized(pixels, SPEC), rtol=0, atol=1e-6)
        half = first(pictures(), draws(), spec=SPEC, dtype=torch.bfloat16)
        assert torch.equal(half, normalized(pixels, SPEC).bfloat16())


def test_the_input_is_left_alone():
    for images in (pictures(), to_unit(pictures())):
        before = images.clone()
        for recipe in ([JITTER, ERASE], [ERASE], STRONG, [path_of(Middle), path_of(Hole)]):
            chain(*recipe, size=(32, 36))(images, draws())
        assert torch.equal(images, before)


@pytest.mark.parametrize(
    "images, error, message",
    [
        (pictures(channels=1), ImageError, r"ColorJitter \(operation 2\) needs 3 channels, but every sample .* has 1"),
        (pictures()[0], ImageError, r"RandomResizedCrop, the first operation, needs images \[B, C, H, W\]"),
        (
            pictures().long(),
            TypeError,
            r"RandomResizedCrop, the first operation, needs uint8, or floats .* torch.int64",
        ),
        (
            torch.rand(8, 3, 32, 32) / torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1]).view(8, 1, 1, 1),
            ImageError,
            "sample 2, 5",
        ),
    ],
)
def test_bad_input_is_named(images, error, message):
    with pytest.raises(error, match=message):
        chain(CROP, JITTER)(images, draws())


class Broken:
    def __call__(self, images):
        return images / (images[:, :1, :1, :1] - images[:, :1, :1, :1])


def test_diagnose_names_the_operation():
    first = chain(CROP, path_of(Broken), JITTER)
    with pytest.raises(ImageError, match=r"the results of .*Broken \(operation 2\) are not finite in sample 0, 1, 2"):
        first.diagnose(pictures(), draws())
    chain(*STRONG).diagnose(pictures(), draws())
