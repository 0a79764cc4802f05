"""A chain: floats in [0, 1], the network's size and normalization, keys that do not depend on the neighbors."""

import pytest
import torch
from torch import nn

from augment.chain import Chain, eval_view, normalized, resized, to_unit
from augment.draws import Draws
from augment.recipe import Op
from augment.views import InputSpec

IMAGES = torch.randint(0, 256, (4, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(4)


class Overshoot(nn.Module):
    def forward(self, images):
        return images * 3 - 1


def chain(*recipe, size=(16, 16)):
    return Chain([Op.model_validate(op) for op in recipe], size)


def run(chain, images=IMAGES, **keywords):
    return chain(images, Draws(0, 0, "student", IDS), **keywords)


def test_normalization_by_hand():
    spec = InputSpec((1, 1), mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.1))
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(eval_view(pixel, spec).flatten(), torch.tensor([1.0, -2.0, 0.0]))


def test_eval_view_is_pils_bilinear_resize():
    from PIL import Image

    spec = InputSpec((8, 12), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    actual = eval_view(IMAGES, spec)[0].permute(1, 2, 0) * 255
    reference = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).resize((12, 8), Image.Resampling.BILINEAR)
    assert float((actual - torch.tensor(list(reference.tobytes())).view(8, 12, 3)).abs().max()) < 1.01


def test_no_operations_is_the_eval_view():
    spec = InputSpec((16, 16))
    assert torch.equal(normalized(run(chain()), spec), eval_view(IMAGES, spec))


def test_uint8_and_floats_are_one():
    assert torch.equal(to_unit(IMAGES), to_unit(to_unit(IMAGES)))
    assert float(to_unit(torch.tensor([255], dtype=torch.uint8))) == 1.0
    with pytest.raises(TypeError, match=r"uint8 or uint16, or floats in \[0, 1\], not torch.int64"):
        to_unit(IMAGES.long())


def test_the_result_has_the_networks_size_and_range():
    for recipe in [["RandomHorizontalFlip"], [{"type": "RandomCrop", "size": [9, 9]}], [f"{__name__}:Overshoot"]]:
        view = run(chain(*recipe))
        assert view.shape == (4, 3, 16, 16) and float(view.min()) >= 0 and float(view.max()) <= 1


def test_the_input_is_left_alone():
    images = to_unit(IMAGES)
    before = images.clone()
    normalized(run(chain(size=(20, 24)), images), InputSpec((20, 24)))
    run(chain(f"{__name__}:Overshoot"), images)
    assert torch.equal(images, before)


def test_channels_last_stays():
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    assert eval_view(images, InputSpec((20, 24))).is_contiguous(memory_format=torch.channels_last)


def test_resizing_to_the_same_size_is_free():
    images = to_unit(IMAGES)
    assert resized(images, (20, 24)) is images


def test_a_color_operation_changes_nothing_about_the_crop():
    crop = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
    gray = {"type": "RandomGrayscale", "p": 0.0}
    assert torch.equal(run(chain(crop, "RandomHorizontalFlip")), run(chain(gray, crop, gray, "RandomHorizontalFlip")))


def test_two_operations_of_one_name_draw_apart():
    flip = "RandomHorizontalFlip"
    images = IMAGES[:1].expand(200, -1, -1, -1)
    twice = chain(flip, flip, size=(20, 24))(images, Draws(0, 0, "student", torch.arange(200)))
    unchanged = (twice == to_unit(images)).flatten(1).all(1).float().mean()
    assert 0.3 < unchanged < 0.7  # one key would flip back every time


def test_geometry_can_have_a_key_of_its_own():
    crop, jitter = "RandomResizedCrop", {"type": "ColorJitter", "brightness": 0.5}
    geometry = Draws(0, 0, "geometry", IDS)
    assert torch.equal(run(chain(crop), geometry=geometry), chain(crop)(IMAGES, geometry))
    assert torch.equal(run(chain(jitter), geometry=geometry), run(chain(jitter)))
