"""The same sample, the same views: alone, in any batch and order, in another process, on another device; and views that
share geometry do so because they share a key.
"""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from augment.chain import Chain
from augment.draws import Draws, sample_key
from augment.dual import AugmentSettings, DualAugment
from augment.preview.overlap import coordinates
from augment.recipe import Op
from augment.views import InputSpec

IDS = torch.tensor([sample_key(f"image {n}") for n in range(9)])
IMAGES = torch.randint(0, 256, (9, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEACHER, STUDENT = InputSpec((36, 36)), InputSpec((24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CROP = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
FLIP = "RandomHorizontalFlip"
TURN = {"type": "RandomAffine", "degrees": 20, "p": 0.8}
JITTER = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
GRAY = {"type": "RandomGrayscale", "p": 0.3}
BLUR = {"type": "RandomGaussianBlur", "kernel_size": [5, 5], "sigma": [0.1, 2.0], "p": 0.5}
ERASE = {"type": "RandomErasing", "p": 0.4}
STRONG = [CROP, FLIP, TURN, JITTER, GRAY, BLUR, ERASE]


def strong(seed=0, **settings):
    return DualAugment(AugmentSettings(policy="both_to_both", student=STRONG, **settings), (TEACHER,), STUDENT, seed)


def tensors(views):
    return [view for network in views.teacher for view in network] + list(views.student)


def assert_close(actual, reference, rows=slice(None), atol=1e-5):
    """``ours`` are the views of ``rows`` of ``theirs``' samples."""
    assert len(tensors(actual)) == len(tensors(reference)) > 0
    for first, other in zip(tensors(actual), tensors(reference)):
        torch.testing.assert_close(first.cpu(), other[rows].cpu(), rtol=0, atol=atol)


@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_a_sample_is_the_same_alone_in_any_batch_and_in_any_order(size):
    augment = strong()
    whole = augment(IMAGES, IDS, 3)
    for first in range(0, 9, size):
        rows = torch.arange(first, min(first + size, 9)).flip(0)
        assert_close(augment(IMAGES[rows], IDS[rows], 3), whole, rows)


def test_neighbors_have_no_say():
    """The same sample beside black and beside white images."""
    augment = strong()
    actual = []
    for value in (0, 255):
        images = IMAGES.clone()
        images[1:] = value
        actual.append([view[:1] for view in tensors(augment(images, IDS, 0))])
    for black, white in zip(*actual):
        torch.testing.assert_close(black, white, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_ranks_that_share_a_batch_make_what_one_would():
    whole = strong()(IMAGES, IDS, 1)
    for rank in range(2):
        assert_close(strong()(IMAGES[rank::2], IDS[rank::2], 1), whole, slice(rank, None, 2))


DIGEST = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from test_augment_repeatable import digest
print(digest())
"""


def digest() -> str:
    views = strong(seed=7)(IMAGES, IDS, 5)
    return hashlib.sha256(b"".join(view.contiguous().numpy().tobytes() for view in tensors(views))).hexdigest()


@pytest.mark.slow
def test_another_process_makes_the_very_same(monkeypatch):
    """A restart: another process, another hash seed, other numbers drawn before."""
    torch.rand(5)
    command = [sys.executable, "-c", DIGEST, os.path.dirname(__file__)]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = digest()
    finally:
        torch.set_num_threads(threads)
    assert done.stdout.strip() == here == digest()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_makes_the_same_views():
    here = strong()(IMAGES, IDS, 2)
    augment = strong().to("cuda")
    there = augment(IMAGES.cuda(), IDS, 2)
    assert all(view.is_cuda for view in tensors(there))
    assert_close(there, here, atol=1e-3)
    assert all(map(torch.equal, tensors(there), tensors(augment(IMAGES.cuda(), IDS, 2)))), "and again, bit by bit"


def where(recipe, view, geometry=None, size=(24, 24)):
    """Which point of the original each pixel of a view shows, by the geometric operations of its whole chain."""
    made = [Op.model_validate(op) for op in recipe]
    draws = Draws(0, 0, view, IDS)
    shared = Draws(0, 0, geometry, IDS) if geometry else None
    return Chain([op for op in made if op.geometric], size)(coordinates(9, (40, 48)), draws, shared)


def test_a_crop_does_not_know_what_stands_beside_it():
    """Its draws hang on its name, not on its place or on what else is in the chain."""
    ramp = coordinates(9, (40, 48))
    alone = Chain([Op.model_validate(CROP)], (24, 24))(ramp, Draws(0, 0, "student", IDS))
    for before in ([FLIP], [TURN]):
        with_others = where([CROP, *before], "student")
        assert not torch.equal(with_others, alone)
    for colors in ([JITTER], [GRAY, BLUR], [JITTER, JITTER, ERASE]):
        assert torch.equal(where([*colors, CROP], "student"), alone)
        assert torch.equal(where([CROP, *colors], "student"), alone)
    twice = where([CROP, CROP], "student")
    assert not torch.equal(twice, alone), "the second crop draws for itself"


def test_shared_geometry_is_a_shared_key():
    """Teacher and student crop alike although their chains have nothing else in common, and their keys differ."""
    reference, actual = [CROP, TURN, GRAY], [JITTER, CROP, BLUR, TURN, ERASE]
    assert torch.equal(where(reference, "teacher", "geometry"), where(actual, "student", "geometry"))
    assert not torch.equal(where(reference, "teacher"), where(actual, "student"))
    augment = DualAugment(
        AugmentSettings(policy="shared_geometry", student=actual, teacher=reference), (STUDENT,), STUDENT, 0
    )
    rendered = (*augment.view_plan.teacher, *augment.view_plan.student)
    assert (
        len({view_spec.geometry for view_spec in rendered}) == 1 and len({view_spec.key for view_spec in rendered}) == 2
    )
    # The drawn parameters of the crop are the same because the keys are, epoch after epoch.
    for epoch in range(3):
        first, other = (
            Draws(0, epoch, view_spec.geometry, IDS).op("RandomResizedCrop#0").uniform(0, (4,))
            for view_spec in rendered
        )
        assert torch.equal(first, other)


def test_both_to_both_shows_networks_of_two_sizes_the_same_crops():
    recipe = [CROP, FLIP, TURN]
    settings = AugmentSettings(policy="both_to_both", student=recipe, teacher=[*recipe, JITTER])
    plain = InputSpec((24, 24), (0.0,) * 3, (1.0,) * 3)
    big = InputSpec((48, 48), (0.0,) * 3, (1.0,) * 3)
    views = DualAugment(settings, (big,), plain, 0)(coordinates(9, (40, 48)), IDS, 0)
    large, small = views.teacher[0][1], views.student[1]  # the view without colors
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    inside = (shrunk[:, 2] > 0.999) & (small[:, 2] > 0.999)
    assert inside.float().mean() > 0.7
    assert float((shrunk[:, :2] - small[:, :2]).abs().amax(1)[inside].max()) < 0.02
    assert float((views.student[0][:, 0] - views.student[1][:, 0]).abs().mean()) > 0.03, "two views, two crops"
