"""A strip runs from the weakest to the strongest draw of an operation, whatever the operation is."""

import numpy as np
import pytest
import torch
from kornia import augmentation as K

from augment.kornia_ops.unfused import kornia_classes
from augment.preview import Strip, strip_of, strips_sheet
from augment.preview.paper import INK, LINE, MUTED, PAPER, font, shortened, wrapped
from augment.recipe import Op
from distill.report.theme import LIGHT

IMAGE = torch.nn.functional.interpolate(
    torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)), (40, 40), mode="bicubic"
).clamp(0, 1)[0]


class Fade:
    """Darkens by a drawn amount."""

    def sample(self, draws, shape):
        return {"amount": draws.uniform(0)}

    def apply(self, images, params):
        return images * (1 - params["amount"].view(-1, 1, 1, 1))


def strip(operation, **keywords):
    return strip_of(Op.model_validate(operation), IMAGE, (32, 32), **keywords)


def strengths(actual):
    return [
        float(caption[0].removeprefix("ΔE ").removeprefix("moved ").removesuffix(" %")) for caption in actual.captions
    ]


def test_quantiles_of_a_uniform_draw():
    actual = strip(f"{__name__}:Fade")
    assert (actual.name, actual.arguments, actual.unchanged, len(actual.pictures)) == ("Fade", "", 0, 7)
    amounts = [float(caption[1].removeprefix("amount ")) for caption in actual.captions]
    assert amounts == sorted(amounts) and amounts[0] < 0.05 and amounts[-1] > 0.95
    assert np.abs(np.diff(amounts) - 1 / 6).max() < 0.09, "evenly by rank"
    assert strengths(actual) == sorted(strengths(actual))
    means = [float(picture.float().mean()) for picture in actual.pictures]
    assert means == sorted(means, reverse=True)


def test_draws_that_change_nothing_are_counted_and_left_out():
    actual = strip({"type": "ColorJitter", "brightness": 0.4, "p": 0.5}, draws=400)
    assert abs(actual.unchanged - 0.5) < 0.1 and actual.arguments == "brightness 0.4 · p 0.5"
    assert all(caption[1].startswith("brightness ") for caption in actual.captions)
    # The weakest may be drawn so near 1 that it rounds to no change; were it not drawn, all the weak ones were like it.
    assert strengths(actual) == sorted(strengths(actual)) and strengths(actual)[1] > 0


def test_equal_results_are_shown_once():
    flip = strip("RandomHorizontalFlip")
    assert len(flip.pictures) == 1 and abs(flip.unchanged - 0.5) < 0.15
    nothing = strip({"type": "RandomHorizontalFlip", "p": 0.0})
    assert nothing.pictures == [] and nothing.unchanged == 1


def test_geometry_is_measured_by_how_far_pixels_moved():
    actual = strip({"type": "RandomAffine", "degrees": 0.0, "translate": [0.25, 0.0], "p": 1.0})
    # A shift by a quarter of the width is 0.25/√2 of the diagonal.
    assert strengths(actual)[-1] == pytest.approx(100 * 0.25 / 2**0.5, abs=0.7)
    assert all(caption[0].startswith("moved") for caption in actual.captions)


@pytest.mark.parametrize(
    "name", ["RandomElasticTransform", "RandomPerspective", "RandomErasing", "RandomGaussianNoise"]
)
def test_any_of_kornias_has_a_strip(name):
    assert name in kornia_classes() and isinstance(getattr(K, name), type)
    actual = strip({"type": name, "p": 1.0})
    assert actual.pictures and strengths(actual) == sorted(strengths(actual))
    assert strip({"type": name, "p": 1.0}).captions == actual.captions, "the same again"


def test_every_strip_and_its_words_are_on_the_sheet():
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 200
    built = Strip("Fade", "a 1 · b 2", [red, red, red], [["ΔE 1.0"], ["ΔE 2.0"], ["ΔE 3.0", "amount 0.1"]], 0.2)
    sheet = strips_sheet({"student's operations": [built, built], "teacher's operations": []}, cell=50)
    pixels = np.asarray(sheet).astype(int)
    assert int((np.abs(pixels - (200, 0, 0)).max(-1) <= 1).sum()) == 6 * 50 * 50
    assert strips_sheet({"nothing": []}).height < sheet.height


def test_paper_and_ink_are_the_reports():
    assert (LIGHT.paper, LIGHT.ink, LIGHT.muted, LIGHT.line) == (PAPER, INK, MUTED, LINE)


def test_text_is_broken_and_cut_to_its_width():
    type_ = font(11)
    lines = wrapped("brightness 0.3 · contrast 0.3 · " + "x" * 100, type_, 120)
    assert all(type_.getlength(line) <= 120 for line in lines) and lines[-1].endswith("…")
    assert shortened("short", type_, 120) == "short"
