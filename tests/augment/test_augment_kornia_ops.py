"""Every fused operation, with its own parameters, against kornia's own code with the same ones."""

import itertools

import pytest
import torch
from kornia import augmentation as K
from kornia import enhance

from augment.draws import Draws
from augment.fuse.color import colored
from augment.kornia_ops import FusedKorniaOp, fused_kornia_op
from augment.kornia_ops.crop import SizeError
from augment.kornia_ops.jitter import NAMES
from augment.recipe import Op

ARGUMENTS = {
    "CenterCrop": {"size": [20, 24]},
    "ColorJiggle": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.9},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.9},
    "RandomAffine": {"degrees": 30, "translate": [0.1, 0.1], "scale": [0.8, 1.2, 0.7, 1.0], "shear": [-10, 9, -8, 7]},
    "RandomBrightness": {"brightness": [0.5, 1.5]},
    "RandomContrast": {"contrast": [0.5, 1.5]},
    "RandomCrop": {"size": [24, 24], "padding": [4, 3, 2, 1]},
    "RandomGamma": {"gamma": [0.5, 2.0], "gain": [0.8, 1.2]},
    "RandomGaussianBlur": {"kernel_size": [5, 7], "sigma": [0.1, 2.0]},
    "RandomHue": {"hue": [-0.3, 0.3]},
    "RandomResizedCrop": {"size": [24, 28]},
    "RandomRotation": {"degrees": 40},
    "RandomRotation90": {"times": [0, 3]},
    "RandomSaturation": {"saturation": [0.2, 2.0]},
    "RandomShear": {"shear": 20},
    "RandomTranslate": {"translate_x": [-0.3, 0.3], "translate_y": [-0.2, 0.3]},
    "Resize": {"size": [20, 26]},
}
FUSED = [
    *("CenterCrop", "ColorJiggle", "ColorJitter", "RandomAffine", "RandomBoxBlur"),
    *("RandomBrightness", "RandomChannelShuffle", "RandomContrast", "RandomCrop", "RandomErasing", "RandomGamma"),
    *("RandomGaussianBlur", "RandomGrayscale", "RandomHorizontalFlip", "RandomHue", "RandomInvert"),
    *("RandomPerspective", "RandomPosterize", "RandomResizedCrop", "RandomRotation", "RandomRotation90"),
    *("RandomSaturation", "RandomShear", "RandomSolarize", "RandomTranslate", "RandomVerticalFlip", "Resize"),
]


def make(name, **arguments):
    return Op.of(name, **{**ARGUMENTS.get(name, {}), **arguments}).build((24, 24))


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def both(operation, x, seed=0):
    """(fused result, kornia's, parameters). kornia warps in double precision here: in single it is off by 1e-5."""
    draws = Draws(seed, 0, "student", torch.arange(len(x))).op(operation.name)
    with torch.no_grad():
        params = operation.sample(draws, x.shape)
        exact = operation.form == "affine"
        reference = {
            name: value.double() if exact and value.is_floating_point() else value for name, value in params.items()
        }
        kornias = operation.user.by_kornia(x.double() if exact else x, reference)
        return operation.run(x, params), kornias.float(), params


def assert_equal(actual, kornias, tolerance):
    assert actual.shape == kornias.shape
    torch.testing.assert_close(actual, kornias, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FUSED)
def test_equals_kornia(name):
    operation = make(name)
    assert isinstance(operation.user, FusedKorniaOp)
    for seed in range(3):
        actual, kornias, params = both(operation, images(8, 3, 32, 38), seed)
        assert_equal(actual, kornias, 1e-5)
        undrawn = ~params["drawn"]
        if operation.user.p != 1:
            assert torch.equal(actual[undrawn], images(8, 3, 32, 38)[undrawn]) or operation.form == "affine"
    actual, kornias, _ = both(operation, images(4, 3, 224, 224))
    assert_equal(actual, kornias, 1e-4)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_never_and_always(name, p):
    if name in ("RandomResizedCrop", "RandomCrop", "CenterCrop", "Resize"):
        pytest.skip("kornia's p is for a whole batch there")
    x = images(3, 3, 25, 31)
    actual, kornias, params = both(make(name, p=p), x)
    assert params["drawn"].tolist() == [p == 1] * 3
    assert_equal(actual, kornias, 1e-5)
    if p == 0:
        assert_equal(actual, x, 1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_odd_sizes_one_channel_and_tiny_images(name):
    operation = make(name)
    for shape in [(3, 1, 33, 27), (2, 3, 27, 41), (1, 3, 25, 28)]:
        if operation.user.channels == 3 and shape[1] == 1:
            continue
        actual, kornias, _ = both(operation, images(*shape))
        assert_equal(actual, kornias, 1e-5)
    if name in ("CenterCrop", "RandomCrop"):
        operation = make(name, size=[1, 2], **({"padding": None} if name == "RandomCrop" else {}))
    if name in ("RandomGaussianBlur", "RandomBoxBlur"):
        operation = make(name, kernel_size=[1, 3])
    actual, kornias, _ = both(operation, images(5, 3, 2, 3))
    assert_equal(actual, kornias, 1e-5)


@pytest.mark.parametrize("name", ["ColorJitter", "ColorJiggle"])
def test_jitter_in_every_order(name):
    """All 24 orders, on the path that reads the order on the host and on the one that does not."""
    x = images(4, 3, 16, 16)
    for order in itertools.permutations(range(4)):
        operation = make(name, order=order, p=1.0)
        actual, kornias, params = both(operation, x)
        assert_equal(actual, kornias, 1e-5)
        assert params["order"].tolist() == [list(order)] * 4
        assert_equal(selected(operation.user, x, params), kornias, 1e-5)


@pytest.mark.parametrize("name", ["ColorJitter", "ColorJiggle"])
@pytest.mark.parametrize("left_out", range(4))
def test_jitter_without_a_step(name, left_out):
    keep = {NAMES[step]: (1.0, 1.0) if step != 3 else (0.0, 0.0) for step in [left_out]}
    operation = make(name, p=1.0, **keep)
    actual, kornias, params = both(operation, images(8, 3, 16, 16))
    assert_equal(actual, kornias, 1e-5)
    assert_equal(selected(operation.user, images(8, 3, 16, 16), params), kornias, 1e-5)


def selected(user, x, params):
    """The path that a GPU takes, and torch.compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return colored(user, x, params)


def test_jitter_draws_an_order_for_every_sample():
    params = make("ColorJitter").sample(Draws(0, 0, "a", torch.arange(2400)).op("x"), torch.Size((2400, 3, 8, 8)))
    orders, counts = params["order"].unique(dim=0, return_counts=True)
    assert len(orders) == 24 and int(counts.min()) > 60 and int(counts.max()) < 145


def test_jitter_by_hand():
    x = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    jitter = make("ColorJitter", order=[0, 1, 2, 3], p=1.0).user
    f = lambda value: torch.tensor(value).view(1, 1, 1, 1)  # noqa: E731
    luma = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    torch.testing.assert_close(jitter.step(0, x, f(2.0)).flatten(), torch.tensor([0.4, 0.8, 1.0]))
    expected = torch.tensor([0.2, 0.4, 0.6]) * 0.5 + 0.5 * luma
    torch.testing.assert_close(jitter.step(1, x, f(0.5)).flatten(), expected)  # of one pixel, the mean is the luma
    torch.testing.assert_close(jitter.step(2, x, f(0.5)).flatten(), expected)
    torch.testing.assert_close(jitter.step(3, x, f(1 / 3)).flatten(), torch.tensor([0.6, 0.2, 0.4]))


def test_hue_of_every_byte():
    """All grays, all edges of the color cube, and turns all the way round."""
    from augment.kornia_ops.hue import hue_rotated

    steps = torch.linspace(0, 1, 18)
    cube = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 18, 324)
    for rotation in torch.linspace(-0.5, 0.5, 13):
        kornias = enhance.adjust_hue(cube, rotation * 2 * torch.pi)
        torch.testing.assert_close(hue_rotated(cube, rotation.view(1, 1, 1, 1)), kornias, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("RandomResizedCrop", {"scale": [0.1, 0.5], "ratio": [1.9, 2.0]}),
        ("RandomResizedCrop", {"scale": [0.9, 1.0], "ratio": [3.0, 4.0]}),  # no try fits: the fallback
        ("RandomResizedCrop", {"scale": [0.9, 1.0], "ratio": [0.1, 0.2]}),
        ("RandomResizedCrop", {"size": [1, 24]}),
        ("RandomCrop", {"padding": 4, "padding_mode": "reflect"}),
        ("RandomCrop", {"padding": 4, "padding_mode": "replicate"}),
        ("RandomCrop", {"size": [44, 40], "padding": None, "pad_if_needed": True}),
        ("RandomAffine", {"degrees": 50, "padding_mode": "border"}),
        ("RandomAffine", {"degrees": 50, "padding_mode": "reflection"}),
        ("RandomAffine", {"degrees": 50, "padding_mode": "reflection", "align_corners": True}),
        ("RandomPerspective", {"distortion_scale": 0.4, "sampling_method": "area_preserving", "p": 1.0}),
        ("RandomTranslate", {"translate_x": None}),
        ("Resize", {"size": 20}),
        ("Resize", {"size": [48, 50], "align_corners": False}),
        ("Resize", {"size": 20, "side": "long"}),
        ("RandomGaussianBlur", {"kernel_size": 23, "p": 1.0}),
        ("RandomErasing", {"ratio": [2.0, 3.0], "value": 0.5, "p": 1.0}),
        ("RandomPosterize", {"bits": [0, 8], "p": 1.0}),
        ("RandomGrayscale", {"rgb_weights": [0.1, 0.2, 0.3], "p": 1.0}),
        ("RandomBrightness", {"clip_output": False}),
        ("RandomInvert", {"max_val": 0.8, "p": 1.0}),
    ],
)
def test_other_arguments(name, arguments):
    operation = make(name, **arguments)
    assert isinstance(operation.user, FusedKorniaOp)
    actual, kornias, _ = both(operation, images(16, 3, 32, 38))
    assert_equal(actual, kornias, 1e-5)


def test_crops_are_drawn_as_kornia_draws_them():
    """Same laws: area, aspect ratio, place, and the fallback where nothing fits."""
    module = K.RandomResizedCrop((24, 24), scale=(0.3, 1.0))
    shape = torch.Size((20000, 3, 40, 60))
    torch.manual_seed(0)
    reference = module.forward_parameters(shape)["src"]
    actual = fused_kornia_op(module).sample(Draws(0, 0, "a", torch.arange(20000)).op("x"), shape)["src"]
    for of in (actual, reference):
        assert of.min() >= 0 and of[..., 0].max() <= 59 and of[..., 1].max() <= 39
    for corner, axis in itertools.product((0, 2), (0, 1)):
        a, b = (boxes[:, corner, axis].sort().values for boxes in (actual, reference))
        assert (a - b).abs().mean() < 0.4


@pytest.mark.parametrize(
    "name, arguments, reason",
    [
        ("RandomResizedCrop", {"align_corners": False}, "align_corners=False"),
        ("RandomResizedCrop", {"resample": "nearest"}, "resample='nearest'"),
        ("RandomResizedCrop", {"cropping_mode": "resample"}, "cropping_mode='resample'"),
        ("RandomCrop", {"fill": 0.5}, "fill=0.5"),
        ("RandomAffine", {"fill_value": 0.5}, "fill_value"),
        ("RandomGaussianBlur", {"border_type": "replicate"}, "border_type='replicate'"),
        ("Resize", {"antialias": True}, "antialias=True"),
        ("RandomEqualize", {}, "kornia's own code"),
    ],
)
def test_what_is_left_to_kornia_says_why(name, arguments, reason):
    assert reason in make(name, **arguments).reason


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        (
            "RandomCrop",
            {},
            r"RandomCrop cuts out 24 x 24 pixels, but every sample of the batch has 24 x 22 with its pad",
        ),
        ("CenterCrop", {}, "CenterCrop cuts out 20 x 24 pixels, but every sample of the batch has 20 x 16"),
        (
            "RandomGaussianBlur",
            {"kernel_size": 41},
            "RandomGaussianBlur reflects 20 pixels .* every sample .* is 20 high",
        ),
    ],
)
def test_too_small_images(name, arguments, message):
    with pytest.raises(SizeError, match=message):
        both(make(name, **arguments), images(2, 3, 20, 16))
