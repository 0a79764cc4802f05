"""Crops, erasing, elastic, patches, frequencies, spectrograms: by hand, by slow loops, by their statistics."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from augment.draws import Draws
from augment.magnitude_ops import blend, posterize
from augment.ops.cutout import Cutout
from augment.ops.elastic import Elastic, elastic
from augment.ops.fourier_mask import FourierMask, distance
from augment.ops.fourier_swap import FourierSwap
from augment.ops.mask_blocks import MaskBlocks
from augment.ops.pad_crop import PadCrop
from augment.ops.patch_shuffle import PatchShuffle
from augment.ops.pixel_erasing import PixelErasing
from augment.ops.spec_augment import SpecAugment

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6) * 31
DRAWS = Draws(0, 0, "student", IDS).op("op")


def sampled(op, count=4000, shape=(3, 32, 32)):
    return op.sample(Draws(0, 0, "student", torch.arange(count)).op("op"), torch.Size((count, *shape)))


@pytest.mark.parametrize("padding, mode", [("zeros", "constant"), ("border", "replicate"), ("reflection", "reflect")])
def test_padcrop_is_pad_then_slice(padding, mode):
    op = PadCrop((28, 30), pixels=4, padding=padding)
    params = op.sample(DRAWS, IMAGES.shape)
    done, padded = op.apply(IMAGES, params), F.pad(IMAGES, [4] * 4, mode=mode)
    for n in range(6):
        top, left = int(params["top"][n]) + 4, int(params["left"][n]) + 4
        slow = padded[n, :, top : top + 28, left : left + 30]
        torch.testing.assert_close(done[n], slow, rtol=0, atol=1e-5)


def test_padcrop_reaches_every_place_alike():
    params = sampled(PadCrop((32, 32)), 9000)
    for corner in params.values():
        offsets, counts = corner.unique(return_counts=True)
        assert offsets.tolist() == list(range(-4, 5)) and (counts / 9000 - 1 / 9).abs().max() < 0.015
    assert abs(torch.corrcoef(torch.stack(list(params.values())).float())[0, 1]) < 0.04


def test_padcrop_of_images_that_are_too_small():
    message = "PadCrop cuts out 64 x 64 pixels, but the images have 32 x 40 and 4 more on every side"
    with pytest.raises(ValueError, match=message):
        PadCrop((64, 64)).sample(DRAWS, torch.Size((6, 3, 32, 40)))


def test_cutout_is_a_square_around_its_center():
    op = Cutout(length=0.25, fill=2.0 / 4)
    done = op.apply(IMAGES, {"drawn": torch.ones(6, dtype=torch.bool), **op.draw(DRAWS, IMAGES.shape)})
    params = op.draw(DRAWS, IMAGES.shape)
    for n in range(6):
        slow, y, x = IMAGES[n].clone(), int(params["y"][n]), int(params["x"][n])
        slow[:, max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 0.5
        assert torch.equal(done[n], slow)
    centers = sampled(op)
    assert all(set(centers[side].tolist()) == set(range(32)) for side in "yx")


def test_pixel_erasing_fills_a_box_of_the_drawn_size_with_noise():
    op = PixelErasing(scale=(0.1, 0.3), ratio=(0.5, 2.0), p=1.0)
    big = torch.full((200, 3, 64, 48), 0.5)
    params = op.sample(Draws(0, 0, "student", torch.arange(200)).op("op"), big.shape)
    done = op.apply(big, params)
    for n, (top, left, tall, wide) in enumerate(params["box"].int().tolist()):
        hole = torch.zeros(64, 48, dtype=torch.bool)
        hole[top : top + tall, left : left + wide] = True
        assert torch.equal((done[n] != 0.5).any(0), hole)
        assert top >= 0 and left >= 0 and top + tall <= 64 and left + wide <= 48
        assert 0.09 < tall * wide / (64 * 48) < 0.32 and 0.45 < tall / wide < 2.2
    noise = done[done != 0.5].view(-1)
    assert abs(noise.mean() - 0.449) < 0.01 and abs(noise.std() - 0.227) < 0.01


def test_pixel_erasing_in_one_color_and_with_nothing_that_fits():
    op = PixelErasing(noise="color", p=1.0)
    done = op.apply(IMAGES, op.sample(DRAWS, IMAGES.shape))
    for before, after in zip(IMAGES, done):
        filling = after[:, (before != after).any(0)]
        assert filling.shape[1] > 5 and (filling == filling[:, :1]).all()
    whole = PixelErasing(scale=(1.0, 1.0), ratio=(2.0, 2.0), p=1.0)
    assert torch.equal(whole.apply(IMAGES, whole.sample(DRAWS, IMAGES.shape)), IMAGES)


def test_elastic_is_torchvisions_for_the_same_noise():
    op = Elastic(alpha=60.0, sigma=3.0)
    rough = torch.rand(6, 2, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    smooth = op.smooth(rough)
    torch.testing.assert_close(smooth, V.gaussian_blur(rough, [25, 25], [3.0, 3.0]), rtol=0, atol=1e-5)
    done = elastic(IMAGES, smooth * 60)
    for n in range(6):
        shift = (smooth[n : n + 1] * 60 / 32).permute(0, 2, 3, 1)
        torch.testing.assert_close(done[n], V.elastic(IMAGES[n], shift, fill=None), rtol=0, atol=1e-4)


def test_elastic_moves_by_what_its_description_says():
    op = Elastic(alpha=50.0, sigma=5.0, p=1.0)
    rough = torch.rand(20, 2, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    moved = (op.smooth(rough) * 25)[..., 15:-15, 15:-15]  # it is more at the border, where noise meets its mirror image
    assert abs(moved.std() / (0.016 * 50) - 1) < 0.08
    still = Elastic(alpha=0.0, p=1.0)
    torch.testing.assert_close(still.apply(IMAGES, still.sample(DRAWS, IMAGES.shape)), IMAGES, rtol=0, atol=1e-5)
    tiny = torch.rand(2, 1, 1, 3)
    assert op.change(tiny, op.sample(Draws(0, 0, "s", torch.arange(2)), tiny.shape)).shape == tiny.shape


def test_patches_change_places_and_nothing_else():
    op = PatchShuffle(grid=4, p=1.0)
    params = op.sample(DRAWS, IMAGES.shape)
    done = op.apply(IMAGES, params)
    for n in range(6):
        for place, patch in enumerate(params["order"][n].tolist()):
            (a, b), (c, d) = divmod(place, 4), divmod(patch, 4)
            here = done[n, :, 8 * a : 8 * a + 8, 8 * b : 8 * b + 8]
            assert torch.equal(here, IMAGES[n, :, 8 * c : 8 * c + 8, 8 * d : 8 * d + 8])
    with pytest.raises(ValueError, match="PatchShuffle: grid=4 does not divide images of 32 x 30 pixels"):
        op.sample(DRAWS, torch.Size((6, 3, 32, 30)))


def test_mask_blocks_fills_whole_blocks_of_the_grid_with_their_probability() -> None:
    images = torch.ones(200, 2, 8, 10)
    op = MaskBlocks(block=0.5, ratio=0.3, fill=0.25)
    draws = Draws(0, 0, "student", torch.arange(200)).op("MaskBlocks")
    result = op.apply(images, op.sample(draws, images.shape))
    blocks = result[:, 0].unfold(1, 4, 4).unfold(2, 4, 4)  # the last two columns are a part of a third block
    assert (blocks == blocks[..., :1, :1]).all() and set(result.unique().tolist()) == {0.25, 1.0}
    filled = (result[:, :, ::4, ::4] == 0.25).float()
    assert filled.shape == (200, 2, 2, 3) and torch.equal(filled[:, 0], filled[:, 1])
    assert filled.mean().item() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("shape", [(32, 32), (31, 32), (32, 27), (9, 7)])
def test_fourier_mask_removes_whole_frequencies(shape):
    images = 0.4 + 0.2 * IMAGES[..., : shape[0], : shape[1]]
    op = FourierMask(ratio=0.5, p=1.0)
    done = op.apply(images, op.sample(DRAWS, images.shape))
    before, after = torch.fft.fft2(images), torch.fft.fft2(done)
    kept = (after.abs() > 1e-3).any(1)
    torch.testing.assert_close(after, before * kept[:, None], rtol=0, atol=2e-3)  # nothing in between, no clipping
    assert kept[:, 0, 0].all() and 0.4 < kept.float().mean() < 0.6
    assert len(kept.flatten(1).unique(dim=0)) == 6


def test_fourier_mask_keeps_to_its_band():
    images = 0.4 + 0.2 * IMAGES
    op = FourierMask(ratio=1.0, band=(0.5, 2.0), p=1.0)
    after = torch.fft.rfft2(op.apply(images, op.sample(DRAWS, images.shape))).abs().amax((0, 1))
    assert torch.equal(after > 1e-3, distance(32, 32, images.device) < 0.5)


def test_fourier_swap_by_hand():
    """λ = 1 over all frequencies: the partner's amplitudes, the sample's own phases."""
    images = 0.4 + 0.2 * IMAGES
    op = FourierSwap(amount=1.0, p=1.0)
    params = op.sample(DRAWS, images.shape)
    assert sorted(params["partner"].tolist()) == list(range(6)) and (params["partner"] != torch.arange(6)).all()
    before, after = torch.fft.rfft2(images), torch.fft.rfft2(op.apply(images, params))
    amplitude, phase = before.abs()[params["partner"]], before.angle()
    unclipped = torch.fft.irfft2(torch.polar(amplitude, phase), s=(32, 32))
    assert unclipped.min() > 0 and unclipped.max() < 1
    torch.testing.assert_close(after.abs(), amplitude, rtol=0, atol=1e-2)
    half = FourierSwap(amount=0.0, p=1.0)
    torch.testing.assert_close(half.apply(images, half.sample(DRAWS, images.shape)), images, rtol=0, atol=1e-5)
    low = FourierSwap(amount=1.0, band=0.2, p=1.0)
    after = torch.fft.rfft2(low.apply(images, params)).abs()
    fine = distance(32, 32, images.device) > 0.2
    torch.testing.assert_close(after[..., fine], before.abs()[..., fine], rtol=0, atol=1e-2)


def test_fourier_swap_partners_do_not_depend_on_the_batchs_order():
    op, order = FourierSwap(p=0.5), torch.tensor([4, 2, 0, 5, 1, 3])
    together = op.apply(IMAGES, op.sample(DRAWS, IMAGES.shape))
    shuffled = op.apply(IMAGES[order], op.sample(DRAWS.of(IDS[order]), IMAGES.shape))
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)
    alone = IMAGES[:1]
    done = FourierSwap(p=1.0).apply(alone, FourierSwap(p=1.0).sample(DRAWS.of(IDS[:1]), alone.shape))
    torch.testing.assert_close(done, alone, rtol=0, atol=1e-5)


def test_specaugment_masks_by_a_slow_loop():
    sounds = 1 + torch.rand(6, 2, 80, 120, generator=torch.Generator().manual_seed(3))
    op = SpecAugment(frequency_width=20, time_width=40)
    params = op.sample(DRAWS, sounds.shape)
    done = op.apply(sounds, params)
    for n in range(6):
        slow = sounds[n].clone()
        for start, width in params["frequencies"][n].tolist():
            slow[:, start : start + width] = 0
        for start, width in params["times"][n].tolist():
            slow[:, :, start : start + width] = 0
        assert torch.equal(done[n], slow)
    mean = SpecAugment(frequency_width=20, time_width=40, fill="mean").apply(sounds, params)
    filling = torch.where(done == 0, mean, sounds.mean((1, 2, 3), keepdim=True))
    torch.testing.assert_close(filling, sounds.mean((1, 2, 3), keepdim=True).expand_as(filling))


def test_specaugment_widths_are_uniform_and_limited():
    spans = sampled(SpecAugment(frequency_width=10, time_width=50, time_part=0.2), 5000, (1, 40, 100))
    widths, counts = spans["frequencies"][..., 1].unique(return_counts=True)
    assert widths.tolist() == list(range(11)) and (counts / 10000 - 1 / 11).abs().max() < 0.015
    assert spans["times"][..., 1].max() == 20
    for name, size in (("frequencies", 40), ("times", 100)):
        start, width = spans[name].unbind(-1)
        assert start.min() == 0 and (start + width).max() == size
    none = SpecAugment(frequency_masks=0, time_masks=0)
    assert torch.equal(none.apply(IMAGES, none.sample(DRAWS, IMAGES.shape)), IMAGES)


def test_blend_and_posterize_by_hand():
    images = torch.tensor([[[[0.2, 0.6]]]])
    torch.testing.assert_close(blend(torch.tensor(0.5), images, torch.tensor([0.5])), torch.tensor([[[[0.05, 0.65]]]]))
    actual = posterize(torch.tensor([[[[255.0, 130.0, 63.0]]]]) / 255, torch.tensor([2.0])) * 255
    torch.testing.assert_close(actual, torch.tensor([[[[192.0, 128.0, 0.0]]]]))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PadCrop((32,)), r"size is \(height, width\) in pixels"),
        (lambda: PadCrop((32, 32), pixels=-1), "pixels is a number from 0"),
        (lambda: PadCrop((32, 32), padding="mirror"), "padding is one of zeros, border, reflection, symmetric, not"),
        (lambda: Cutout(length=16), "length is a fraction of the shorter side, above 0 and up to 1, not 16"),
        (lambda: PixelErasing(noise="gray"), "noise is 'pixel' or 'color', not 'gray'"),
        (lambda: PixelErasing(ratio=(0, 1)), "ratio is a number or"),
        (lambda: Elastic(sigma=0), "sigma is a number of pixels above 0"),
        (lambda: MaskBlocks(block=0), "block is a fraction of the shorter side, above 0 and up to 1, not 0"),
        (lambda: MaskBlocks(ratio=2), "ratio is a probability, 0 … 1, not 2"),
        (lambda: PatchShuffle(grid=1), "grid is a number of patches along a side from 2, not 1"),
        (lambda: FourierMask(ratio=1.5), "ratio is a number or .* in 0 … 1"),
        (lambda: FourierSwap(band=0), "band is a distance from frequency 0"),
        (lambda: SpecAugment(time_part=0), "time_part is above 0"),
        (lambda: SpecAugment(fill="zero"), "fill is a number or 'mean', not 'zero'"),
        (lambda: SpecAugment(frequency_masks=-1), "frequency_masks is a number of masks from 0"),
    ],
)
def test_a_mistake_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
