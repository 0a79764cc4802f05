"""kornia's augmentations, every one of them: a sample's result depends on the sample and its key alone."""

import pytest
import torch
from kornia import augmentation as K

from augment.draws import Draws, sample_key
from augment.kornia_ops.unfused import kornia_classes
from augment.recipe import Op

ARGUMENTS = {
    "CenterCrop": {"size": [20, 20]},
    "ColorJiggle": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.9},
    "ColorJitter": {"brightness": 0.4, "contrast": [0.6, 1.4], "saturation": 0.4, "hue": 0.1, "p": 0.9},
    "LongestMaxSize": {"max_size": 20},
    "PadTo": {"size": [40, 40]},
    "RandomAffine": {"degrees": 30, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 10, "p": 0.8},
    "RandomAutoContrast": {"p": 0.5},
    "RandomBrightness": {"brightness": [0.5, 1.5]},
    "RandomContrast": {"contrast": [0.5, 1.5]},
    "RandomCrop": {"size": [24, 24], "padding": 4},
    "RandomFisheye": {"center_x": [-0.3, 0.3], "center_y": [-0.3, 0.3], "gamma": [0.9, 1.1]},
    "RandomGamma": {"gamma": [0.5, 2.0]},
    "RandomGaussianBlur": {"kernel_size": [5, 5], "sigma": [0.1, 2.0]},
    "RandomGrayscale": {"p": 0.5},
    "RandomHue": {"hue": [-0.3, 0.3]},
    "RandomJPEG": {"jpeg_quality": [10, 80]},
    "RandomMotionBlur": {"kernel_size": [3, 9], "angle": 30, "direction": 0.5, "p": 0.8},
    "RandomRain": {"number_of_drops": [10, 40], "drop_height": [2, 5], "drop_width": [-3, 3]},
    "RandomResizedCrop": {"size": [24, 24]},
    "RandomRotation": {"degrees": 40},
    "RandomRotation90": {"times": [0, 3]},
    "RandomSaturation": {"saturation": [0.2, 2.0]},
    "RandomShear": {"shear": 20},
    "RandomSnow": {"snow_coefficient": [0.2, 0.8]},
    "RandomTranslate": {"translate_x": [-0.3, 0.3], "translate_y": [-0.3, 0.3]},
    "Resize": {"size": [20, 20]},
    "SmallestMaxSize": {"max_size": 20},
}
DRAW_NOTHING = {"CenterCrop", "LongestMaxSize", "PadTo", "Resize", "SmallestMaxSize"}
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([sample_key(f"image {n}") for n in range(5)])


def make(name, **arguments):
    return Op.model_validate({"type": name, **ARGUMENTS.get(name, {}), **arguments}).build((32, 32))


@torch.no_grad()
def run(op, images=IMAGES, ids=IDS, epoch=0, view="student"):
    return op(images, Draws(0, epoch, view, ids).op("op"))


@pytest.mark.parametrize("name", sorted(kornia_classes()))
def test_a_sample_gets_the_same_in_any_batch(name):
    op = make(name)
    state = torch.get_rng_state()
    together = run(op)
    alone = torch.cat([run(op, IMAGES[n : n + 1], IDS[n : n + 1]) for n in range(5)])
    # Elastic warps and JPEG multiply matrices, whose sums run in another order in another batch.
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    assert torch.equal(together, run(op, IMAGES.flip(0), IDS.flip(0)).flip(0))
    many = run(op, IMAGES.repeat(4, 1, 1, 1), IDS.repeat(4))
    torch.testing.assert_close(many, together.repeat(4, 1, 1, 1), rtol=0, atol=2e-6)
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"
    if name not in DRAW_NOTHING:
        same = IMAGES[:1].expand(20, -1, -1, -1)
        ids = torch.arange(20)
        first = run(op, same, ids)
        assert not torch.equal(first, run(op, same, ids, epoch=1)), "epochs are alike"
        assert not torch.equal(first, run(op, same, ids, view="teacher")), "views are alike"
        assert len(first.flatten(1).unique(dim=0)) > 1, "samples are alike"


@pytest.mark.parametrize("name", ["RandomEqualize", "RandomMotionBlur", "RandomElasticTransform"])
def test_the_work_is_kornias_own(name):
    """With the parameters that we drew, the module itself gives our output."""
    op = make(name)
    actual = run(op)
    with torch.no_grad():
        assert torch.equal(op.module(IMAGES, params=op.module._params), actual)
    assert op.module._params["forward_input_shape"][0] == 5


def test_the_draws_follow_the_settings():
    many = IMAGES[:1].expand(2000, -1, -1, -1)[..., :4, :4]
    ids = torch.arange(2000)
    flipped = (run(make("RandomHorizontalFlip", p=0.3), many, ids) != many).flatten(1).any(1).float().mean()
    assert abs(flipped - 0.3) < 0.04
    sample = make("RandomBrightness").sample(Draws(0, 0, "a", ids).op("b"), many.shape)["brightness_factor"]
    assert sample.min() >= 0.5 and sample.max() <= 1.5 and abs(sample.mean() - 1) < 0.03


def test_the_generator_does_not_move_to_the_device():
    """kornia reads its parameters on the host; ``DualAugment.to(device)`` must not move its samplers."""
    for name in ("RandomElasticTransform", "RandomResizedCrop"):
        op = make(name)
        assert list(op.modules()) == [op]


def test_what_moves_pixels():
    assert all(make(name).geometric for name in ["RandomResizedCrop", "RandomHorizontalFlip", "RandomElasticTransform"])
    assert not any(make(name).geometric for name in ["ColorJitter", "RandomErasing", "RandomGaussianBlur"])


def test_only_single_image_augmentations_are_offered():
    known = kornia_classes()
    assert not {"AugmentationBase2D", "RandomMixUpV2", "RandomCutMixV2", "ImageSequential", "RandomCrop3D"} & set(known)
    assert all(isinstance(getattr(K, name), type) for name in known)
