"""Equalize, autocontrast, sharpness, JPEG, noise: against PIL and torchvision, by hand, and by their statistics."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as V

from augment.draws import Draws
from augment.ops.autocontrast import AutoContrast
from augment.ops.equalize import Equalize, equalize
from augment.ops.gaussian_noise import GaussianNoise
from augment.ops.jpeg import JPEG, jpeg
from augment.ops.sharpness import Sharpness, sharpness

LEVEL = 1 / 255


def photos(count=5, height=37, width=50):
    """uint8 [B, 3, H, W]: smooth, with edges and some grain, each image with another range."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 6, width), indexing="ij")
    phase = torch.rand(count, 3, 1, 1, generator=generator) * 6
    wave = 0.5 + 0.3 * torch.sin(x + phase) * torch.cos(y - phase) + 0.15 * (torch.sin(2 * x * y + phase) > 0.5)
    grain = 0.02 * torch.randn(wave.shape, generator=generator)
    contrast = torch.linspace(0.3, 1, count).view(-1, 1, 1, 1)
    return ((wave + grain) * contrast).clamp(0, 1).mul(255).round().to(torch.uint8)


PHOTOS = photos()
FLOATS = PHOTOS.float() * LEVEL


def picture(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def pixels(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() * LEVEL


def params(**values):
    return {"drawn": torch.ones(len(PHOTOS), dtype=torch.bool), **values}


def test_equalize_is_pils_to_the_level():
    done = Equalize().apply(FLOATS, params())
    for n, image in enumerate(PHOTOS):
        torch.testing.assert_close(done[n], pixels(ImageOps.equalize(picture(image))), rtol=0, atol=1e-6)
    assert (done - FLOATS).abs().mean() > 20 * LEVEL


def test_equalize_by_hand():
    """1020 pixels, a quarter each at 10, 20, 30, 40: s = 765 // 255 = 3, levels (1 + 255 k) // 3."""
    image = torch.tensor([10.0, 20, 30, 40]).repeat_interleave(255).view(1, 1, 30, 34) * LEVEL
    actual = (equalize(image) * 255).round().unique().int().tolist()
    assert actual == [0, 85, 170, 255]
    flat = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(equalize(flat), flat)


def test_autocontrast_is_pils_within_a_level_and_leaves_flat_channels():
    images = torch.cat([FLOATS, torch.full_like(FLOATS[:1], 0.3)])
    done = AutoContrast().apply(images, {"drawn": torch.ones(6, dtype=torch.bool)})
    for n, image in enumerate(PHOTOS):
        assert (done[n] - pixels(ImageOps.autocontrast(picture(image)))).abs().max() < 1.01 * LEVEL
    assert torch.equal(done[5], images[5])
    torch.testing.assert_close(done[:5].amax((2, 3)), torch.ones(5, 3))


def test_sharpness_is_pils():
    factor = torch.tensor([0.0, 0.4, 1.0, 1.7, 3.0])
    done = Sharpness().apply(FLOATS, params(factor=factor))
    for n, image in enumerate(PHOTOS):
        reference = pixels(ImageEnhance.Sharpness(picture(image)).enhance(float(factor[n])))
        # PIL rounds the smoothed copy, and then the result.
        assert (done[n] - reference).abs().max() < (0.5 * abs(1 - float(factor[n])) + 1.1) * LEVEL
        torch.testing.assert_close(done[n], V.adjust_sharpness(FLOATS[n], float(factor[n])), rtol=0, atol=1e-6)
    assert torch.equal(sharpness(FLOATS[:, :, :2], factor), FLOATS[:, :, :2])


def test_sharpness_is_kornias_only_faster():
    from kornia.enhance import sharpness as reference

    factor = torch.tensor([0.0, 0.4, 1.0, 1.7, 3.0])
    torch.testing.assert_close(sharpness(FLOATS, factor), reference(FLOATS, factor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 95])
def test_jpeg_is_a_file_written_and_read(quality):
    done = jpeg(FLOATS, torch.full((5,), float(quality)))
    assert done.shape == FLOATS.shape
    for n, image in enumerate(PHOTOS):
        file = io.BytesIO()
        picture(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        reference = pixels(Image.open(file))
        apart, loss = (done[n] - reference).abs().mean(), (reference - FLOATS[n]).abs().mean()
        # libjpeg computes with whole numbers; where that tips a coefficient over, its block is a step of the table off:
        # at most 1.3 levels on average and 4.6 % of the pixels were measured on these pictures.
        assert apart < 1.5 * LEVEL and apart < 0.25 * loss
        assert ((done[n] - reference).abs() > 6 * LEVEL).float().mean() < 0.05


def test_jpeg_of_a_gray_image():
    gray = PHOTOS[:, :1]
    done = jpeg(gray.float() * LEVEL, torch.full((5,), 40.0))
    for n, image in enumerate(gray):
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, "JPEG", quality=40)
        reference = torch.from_numpy(np.asarray(Image.open(file)).copy()) * LEVEL
        assert (done[n, 0] - reference).abs().mean() < 0.3 * LEVEL


def test_jpeg_has_each_samples_own_quality():
    quality = torch.tensor([5.0, 20.0, 50.0, 80.0, 100.0])
    same = FLOATS[4:, :1].expand(5, 3, -1, -1)  # gray, as color is halved at any quality
    loss = (jpeg(same, quality) - same).abs().mean((1, 2, 3))
    assert torch.equal(loss.sort(descending=True).values, loss) and loss[0] > 3 * loss[4]
    for n in range(5):
        torch.testing.assert_close(jpeg(same[n : n + 1], quality[n : n + 1]), jpeg(same, quality)[n : n + 1])
    drawn = JPEG((30, 33)).sample(Draws(0, 0, "s", torch.arange(4000)).op("o"), torch.Size((4000, 3, 8, 8)))["quality"]
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [30, 31, 32, 33] and (counts / 4000 - 0.25).abs().max() < 0.03


def test_jpeg_says_how_many_channels():
    with pytest.raises(ValueError, match="JPEG: images have 1 or 3 channels, not 2"):
        JPEG().sample(Draws(0, 0, "s", torch.arange(4)), torch.Size((4, 2, 8, 8)))


def test_noise_is_normal_with_each_samples_own_spread():
    gray = torch.full((6, 3, 64, 64), 0.5)
    draws = Draws(0, 0, "student", torch.arange(6)).op("noise")
    op = GaussianNoise((0.02, 0.1), p=1.0)
    drawn = op.sample(draws, gray.shape)
    added = op.apply(gray, drawn) - 0.5
    torch.testing.assert_close(added.flatten(1).std(1), drawn["std"], rtol=0.03, atol=0)
    standard = (added / drawn["std"].view(-1, 1, 1, 1)).flatten()
    assert abs(standard.mean()) < 0.01 and abs((standard**4).mean() - 3) < 0.1 and abs((standard**3).mean()) < 0.05
    for share, limit in ((0.6827, 1), (0.9545, 2), (0.9973, 3)):
        assert abs((standard.abs() < limit).float().mean() - share) < 0.005
    channels = added.flatten(2)
    assert abs((channels[:, 0] * channels[:, 1]).mean() / channels[:, 0].var()) < 0.03
    assert (channels[..., 1:] * channels[..., :-1]).mean().abs() < 2e-5  # neighbors


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Sharpness((1.9, 0.1)), r"factor is a number or \[lowest, highest\] in 0 … inf, not \(1.9, 0.1\)"),
        (lambda: Sharpness(-1.0), "factor is a number"),
        (lambda: JPEG((0, 50)), "quality is a number or .* in 1 … 100"),
        (lambda: JPEG((10, 20, 30)), "quality is a number or"),
        (lambda: GaussianNoise("a"), "std is a number or"),
        (lambda: Equalize(p=-0.1), "p is a probability, 0 … 1, not -0.1"),
    ],
)
def test_a_mistake_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
