"""Views made by the loader's workers are the views that the device would have made, to the rounding of a byte."""

import pickle

import pytest
import torch

from augment.dual import AugmentSettings, DualAugment
from augment.placement import LoaderViews
from augment.views import InputSpec

IMAGES = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6)
STUDENT, TEACHERS = InputSpec((24, 24)), [InputSpec((32, 32)), InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3)]
RECIPE = ["RandomResizedCrop", {"type": "ColorJitter", "brightness": 0.4, "hue": 0.1}, "RandomHorizontalFlip"]
HALF = 0.5 / 255 / 0.224 + 1e-6


def dual(**settings):
    chosen = {"policy": "weak_teacher", "student": RECIPE, **settings}
    return DualAugment(AugmentSettings.model_validate(chosen), TEACHERS, STUDENT, seed=3)


def flat(views):
    return [view for seen in (*views.teacher, views.student) for view in seen]


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": policy}
        for policy in ["identical", "independent", "shared_geometry", "weak_teacher", "both_to_both", "multicrop"]
    ]
    + [{"mix": {"mixup": 0.8, "cutmix": 1.0}}, {"student": []}],
    ids=str,
)
def test_the_views_are_the_devices(settings):
    augment = dual(**settings)
    there = LoaderViews(augment)
    rendered = pickle.loads(pickle.dumps(there))(IMAGES, IDS, 2)  # as a spawned worker gets it
    assert all(view_spec.dtype == torch.uint8 for view_spec in rendered.values())
    expected, actual = augment(IMAGES, IDS, 2), augment(rendered, IDS, 2)
    assert actual.pairs == expected.pairs and (actual.mix is None) == (expected.mix is None)
    for built, other in zip(flat(expected), flat(actual), strict=True):
        assert built.shape == other.shape and float((built - other).abs().max()) < HALF


def test_networks_of_one_size_share_a_view():
    rendered = LoaderViews(dual())(IMAGES, IDS, 0)
    assert sorted(tuple(view_spec.shape) for view_spec in rendered.values()) == [(6, 3, 24, 24), (6, 3, 32, 32)]


def test_a_worker_keeps_no_networks_and_builds_once():
    there = LoaderViews(dual())
    there(IMAGES, IDS, 0)
    built = there._dual
    there(IMAGES, IDS, 1)
    assert there._dual is built and pickle.loads(pickle.dumps(there))._dual is None


def test_ids_must_fit_the_views():
    augment = dual()
    with pytest.raises(ValueError, match=r"6 images need ids \[6\], not \[5\]"):
        augment(augment.render(IMAGES, IDS, 0), IDS[:5], 0)
