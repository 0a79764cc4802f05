"""Containers: OneOf, SomeOf, RandomApply and Sequential, nested, by name and as objects."""

import pytest
import torch
from kornia import augmentation as K
from torch import nn
from torchvision.transforms import v2

from augment.chain import Chain
from augment.draws import Draws
from augment.dual import AugmentSettings, DualAugment
from augment.ops.one_of import OneOf
from augment.ops.random_apply import RandomApply
from augment.ops.sequential import Sequential
from augment.ops.some_of import SomeOf
from augment.preview.overlap import view_overlap
from augment.preview.strips import strip_of
from augment.recipe import Op
from augment.views import InputSpec

IMAGES = torch.rand(9, 3, 24, 20, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(9) * 7 + 3
MANY = torch.arange(3000)
GRAY = {"type": "RandomGrayscale", "p": 1.0}
INVERT = {"type": "RandomInvert", "p": 1.0}
FLIP = {"type": "RandomHorizontalFlip", "p": 1.0}
TURN = {"type": "RandomRotation", "degrees": 30, "p": 1.0}
JITTER = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "p": 0.8}
TV_TURN = {"type": "torchvision.transforms.v2:RandomRotation", "degrees": 20}
NESTED = {
    "type": "OneOf",
    "weights": [2, 1, 1],
    "transforms": [
        {"type": "SomeOf", "n": [1, 2], "transforms": [JITTER, "RandomEqualize", FLIP]},
        {"type": "RandomApply", "transforms": [GRAY, {"type": "Sequential", "transforms": [TURN, INVERT]}]},
        {"type": "torchvision.transforms.v2:RandomApply", "transforms": [TV_TURN]},
    ],
}


def chain(*recipe, size=(24, 20), **settings):
    return Chain([Op.model_validate(op) if isinstance(op, dict | str) else op for op in recipe], size, **settings)


def run(chain, images=IMAGES, ids=IDS, epoch=0):
    return chain(images, Draws(0, epoch, "student", ids))


def one_pixel(ids):
    """The same pixel for every id: what was done to it shows in its value."""
    return torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).expand(len(ids), -1, 4, 4)


def fractions(made, *values):
    """How often the first channel of the first pixel has each value."""
    return [float((made[:, 0, 0, 0] - value).abs().lt(1e-3).float().mean()) for value in values]


@pytest.mark.parametrize("engine", ["fused", "kornia"])
def test_a_sample_gets_the_same_in_any_batch(engine):
    made = chain(NESTED, "RandomVerticalFlip", engine=engine)
    state = torch.get_rng_state()
    together = run(made)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(together, run(made))
    alone = torch.cat([run(made, IMAGES[n : n + 1], IDS[n : n + 1]) for n in range(9)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    torch.testing.assert_close(together, run(made, IMAGES.flip(0), IDS.flip(0)).flip(0), rtol=0, atol=2e-6)
    assert not torch.equal(together, run(made, epoch=1))
    torch.testing.assert_close(together, run(chain(NESTED, "RandomVerticalFlip")), rtol=0, atol=1e-5)


def test_one_of_draws_by_weight():
    made = run(
        chain({"type": "OneOf", "transforms": [GRAY, INVERT], "weights": [3, 1]}, size=(4, 4)), one_pixel(MANY), MANY
    )
    gray, inverted = fractions(made, 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2, 0.2)
    assert abs(gray + inverted - 1) < 1e-6 and abs(gray - 0.75) < 0.03
    some = run(chain({"type": "OneOf", "transforms": [INVERT], "p": 0.4}, size=(4, 4)), one_pixel(MANY), MANY)
    assert abs(fractions(some, 0.2)[0] - 0.4) < 0.03


def test_one_operation_of_several_is_drawn_apart_from_its_own_probability():
    """OneOf's choice and the p of what it holds are not the same number."""
    half = {"type": "RandomInvert", "p": 0.5}
    made = run(chain({"type": "OneOf", "transforms": [half, half]}, size=(4, 4)), one_pixel(MANY), MANY)
    assert abs(fractions(made, 0.2)[0] - 0.5) < 0.04


def test_some_of_draws_so_many_in_order():
    darker = {"type": "RandomBrightness", "brightness": [0.5, 0.5], "p": 1.0}
    recipe = {"type": "SomeOf", "transforms": [darker, INVERT, FLIP], "n": 2}
    made = run(chain(recipe, size=(4, 4)), one_pixel(MANY), MANY)
    both, darkened, inverted = fractions(
        made, 0.7, 0.3, 0.2
    )  # darker then inverted; darker, flipped; inverted, flipped
    assert abs(both + darkened + inverted - 1) < 1e-6 and all(
        abs(share - 1 / 3) < 0.03 for share in (both, darkened, inverted)
    )
    counted = run(chain({**recipe, "n": [0, 1]}, size=(4, 4)), one_pixel(MANY), MANY)
    nothing, *each = fractions(counted, 0.8, 0.3, 0.2)
    assert abs(nothing - 0.5 - 1 / 6) < 0.04 and all(abs(share - 1 / 6) < 0.03 for share in each), (
        "a flip shows nothing"
    )


def test_random_apply_is_all_or_nothing():
    recipe = {
        "type": "RandomApply",
        "transforms": [INVERT, {"type": "RandomBrightness", "brightness": [0.5, 0.5]}],
        "p": 0.3,
    }
    recipe["transforms"][1]["p"] = 1.0
    done, kept = fractions(run(chain(recipe, size=(4, 4)), one_pixel(MANY), MANY), 0.0, 0.8)
    assert abs(done + kept - 1) < 1e-6 and abs(done - 0.3) < 0.03


def test_sequential_alone_is_its_operations():
    crop = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
    inside = chain({"type": "Sequential", "transforms": [crop, FLIP, INVERT]}, size=(16, 12))
    assert run(inside).shape == (9, 3, 16, 12)
    always = chain({"type": "Sequential", "transforms": [FLIP, INVERT]})
    torch.testing.assert_close(run(always), run(chain(FLIP, INVERT)))
    assert torch.equal(run(chain({"type": "Sequential", "transforms": []})), IMAGES)


def test_presets_can_be_nested_and_are_stored_as_operations():
    op = Op.model_validate({"type": "OneOf", "transforms": ["weak", {"type": "Sequential", "transforms": ["cifar"]}]})
    assert op.model_dump()["transforms"][1:] == [
        "RandomHorizontalFlip",
        {"type": "Sequential", "transforms": [{"type": "PadCrop", "pixels": 4}, "RandomHorizontalFlip"]},
    ]
    assert Op.model_validate(op.model_dump()) == op


def test_operations_that_change_the_size():
    crop, small = {"type": "RandomResizedCrop", "size": [16, 12]}, {"type": "CenterCrop", "size": [16, 12]}
    both = run(chain({"type": "OneOf", "transforms": [crop, small]}, size=(16, 12)))
    assert both.shape == (9, 3, 16, 12)
    with pytest.raises(ValueError, match=r"OneOf: its operations make images of different sizes, \[3, 24, 20\] and"):
        run(chain({"type": "OneOf", "transforms": [crop, INVERT]}))
    for recipe in ({"type": "RandomApply", "transforms": [crop]}, {"type": "SomeOf", "transforms": [INVERT, crop]}):
        with pytest.raises(
            ValueError, match=r"RandomResizedCrop changes images from \[3, 24, 20\] to \[3, 16, 12\], but"
        ):
            run(chain(recipe))


def test_elsewhere_than_on_a_cpu_all_samples_are_computed(monkeypatch):
    """The path without gathering gives the same."""
    made = chain(NESTED)
    expected = run(made)
    monkeypatch.setattr("augment.container.gathers", lambda images: False)
    monkeypatch.setattr("augment.ops.one_of.gathers", lambda images: False)
    torch.testing.assert_close(run(made), expected, rtol=0, atol=2e-6)


def test_objects_in_python():
    made = [
        OneOf([K.RandomGrayscale(p=1.0), v2.RandomInvert(1.0), lambda images: images / 2], weights=[1, 0, 0]),
        RandomApply([SomeOf([nn.Sequential(K.RandomInvert(p=1.0), K.RandomHorizontalFlip(p=1.0))])], p=1.0),
        Sequential([Op.of("RandomVerticalFlip", p=1.0)]),
    ]
    named = [{"type": "Sequential", "transforms": [GRAY, INVERT, FLIP, {"type": "RandomVerticalFlip", "p": 1.0}]}]
    torch.testing.assert_close(run(Chain(made, (24, 20))), run(chain(*named)))
    same = OneOf([K.RandomGrayscale(p=1.0), K.RandomInvert(p=1.0)])
    assert torch.equal(run(chain(same)), run(chain({"type": "OneOf", "transforms": [GRAY, INVERT]})))


def test_the_plan_shows_what_is_inside():
    assert chain(NESTED).plan().splitlines()[:-1] == [
        "barrier  OneOf: one of 3, 2 : 1 : 1",
        "  - barrier  SomeOf: 1 to 2 of 3",
        "      - color    ColorJitter: pixel by pixel",
        "      - barrier  RandomEqualize: kornia's own code",
        "      - geometry RandomHorizontalFlip: whole pixels",
        "  - barrier  RandomApply: all or nothing, with probability 0.5",
        "      - color    RandomGrayscale: pixel by pixel",
        "        barrier  Sequential: all in order",
        "          - geometry RandomRotation: one bilinear reading, zeros beyond the border",
        "            color    RandomInvert: pixel by pixel",
        "  - barrier  torchvision.transforms.v2:RandomApply: its own code",
    ]


def test_channels_are_checked_inside():
    with pytest.raises(ValueError, match=r"ColorJitter \(operation 1\) needs 3 channels"):
        run(chain({"type": "RandomApply", "transforms": [{"type": "ColorJitter", "hue": 0.1}]}), IMAGES[:, :1])


CROP = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
SIZE = InputSpec((16, 16))
MIXED = [
    {"type": "RandomApply", "transforms": [JITTER]},
    {"type": "RandomApply", "transforms": [TURN, JITTER], "p": 0.7},
    {"type": "OneOf", "transforms": [INVERT, FLIP, {"type": "Sequential", "transforms": [GRAY, TURN]}]},
]


def dual(student, **settings):
    parsed = AugmentSettings.model_validate({"policy": "shared_geometry", "student": student, **settings})
    return DualAugment(parsed, (SIZE,), SIZE, seed=0)


@pytest.mark.parametrize("teacher", [None, [*MIXED, "RandomSolarize"]])
def test_shared_geometry_shares_what_moves_pixels_inside(teacher):
    augment = dual([CROP, *MIXED], **({"teacher": [CROP, *teacher]} if teacher else {}))
    images = torch.rand(16, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    overlap = view_overlap(augment, images, torch.arange(16), 0)
    assert float(overlap.overlap.min()) > 0.99
    assert float(overlap.color.nanmean()) > 1, "colors are drawn for each"
    apart = view_overlap(dual([CROP, *MIXED], policy="independent"), images, torch.arange(16), 0)
    assert float(apart.overlap.mean()) < 0.9


def test_shared_geometry_needs_the_same_geometry_inside():
    other = [*MIXED[:2], {"type": "OneOf", "transforms": [INVERT, TURN]}]
    with pytest.raises(ValueError, match="needs the student's geometric operations"):
        dual([CROP, *MIXED], teacher=[CROP, *other])


def test_multicrop_sees_crops_inside_containers():
    hidden = {"type": "Sequential", "transforms": [CROP, FLIP]}
    with pytest.raises(ValueError, match="but it is inside Sequential; list it by itself"):
        dual([hidden], policy="multicrop")


def test_networks_of_two_sizes_need_a_crops_size_inside_too():
    inside = {"type": "Sequential", "transforms": ["PadCrop"]}
    settings = AugmentSettings.model_validate({"policy": "shared_geometry", "student": [inside]})
    with pytest.raises(ValueError, match="PadCrop needs its argument 'size'"):
        DualAugment(settings, (SIZE,), InputSpec((24, 24)), seed=0)


def test_torchvisions_container_of_geometry_is_geometric():
    rotation = {"type": "torchvision.transforms.v2:RandomRotation", "degrees": 20}
    inside = {"type": "torchvision.transforms.v2:RandomApply", "transforms": [rotation]}
    assert Op.model_validate(inside).geometric
    assert not Op.model_validate({**inside, "transforms": ["torchvision.transforms.v2:RandomInvert"]}).geometric


def test_a_strip_names_what_is_inside():
    strip = strip_of(Op.model_validate(MIXED[2]), IMAGES[0], (24, 24), draws=64)
    assert strip.name == "OneOf" and strip.pictures
    assert (
        strip.arguments == "transforms RandomInvert, RandomHorizontalFlip, Sequential (RandomGrayscale, RandomRotation)"
    )


def test_a_users_normalization_is_warned_of_once(caplog):
    class Standardize(nn.Module):
        def forward(self, images):
            return (images - 0.45) / 0.225

    settings = AugmentSettings(student=[], teacher=[])
    augment = DualAugment(settings, (SIZE,), SIZE, seed=0)
    for name in augment.chains:
        augment.chains[name] = Chain([Standardize()], (16, 16))
    for _ in range(2):
        augment(IMAGES, IDS, 0)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(augment.chains)
    assert "Standardize leaves [0, 1]" in messages[0] and "% of the values of the view" in messages[0]
    noisy = DualAugment(AugmentSettings(student=["GaussianNoise"], teacher=[]), (SIZE,), SIZE, seed=0)
    noisy(IMAGES, IDS, 0)
    assert len(caplog.records) == len(messages)
