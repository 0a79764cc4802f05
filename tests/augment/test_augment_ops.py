"""What holds for every operation of ours: by sample, by draws, in range, nothing changed in place."""

import pytest
import torch

from augment.chain import Chain
from augment.draws import Draws
from augment.ops import operations
from augment.recipe import Op

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6) * 7919
CONTAINERS = {"OneOf", "RandomApply", "Sequential", "SomeOf"}  # tested in test_augment_containers.py
OPERATIONS = sorted(set(operations()) - CONTAINERS)
# FourierSwap takes its partner from the batch: the one whose result depends on it.
ALONE = [name for name in OPERATIONS if name != "FourierSwap"]


def operation(name, **arguments):
    return Op.of(name, **arguments).build((32, 32))


def run(op, images=IMAGES, ids=IDS, epoch=0):
    return op(images, Draws(0, epoch, "student", ids).op("op"))


def sometimes(name):
    """The operation on half of the samples, where it has a probability."""
    return operation(name, p=0.5) if hasattr(operation(name).user, "p") else operation(name)


def always(name):
    return operation(name, p=1.0) if hasattr(operation(name).user, "p") else operation(name)


def test_the_package_is_the_list():
    assert {"PadCrop", "Equalize", "JPEG", "SpecAugment", "FourierSwap"} <= set(OPERATIONS)
    assert not {"Sometimes", "PerSampleChange", "Sampled"} & set(OPERATIONS)
    assert all(name == cls.__name__ and cls.__doc__ for name, cls in operations().items())


@pytest.mark.parametrize("name", ALONE)
def test_a_sample_does_not_depend_on_its_batch(name):
    op = sometimes(name)
    together = run(op)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(run(op, IMAGES[order], IDS[order]), together[order], rtol=0, atol=1e-5)
    for n in range(6):
        alone = run(op, IMAGES[n : n + 1], IDS[n : n + 1])
        torch.testing.assert_close(alone, together[n : n + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_change_by_their_draws_and_stay_images(name):
    op = always(name)
    before, state = IMAGES.clone(), torch.get_rng_state()
    after = run(op)
    assert torch.equal(IMAGES, before) and torch.equal(torch.get_rng_state(), state)
    assert after.shape == IMAGES.shape and after.dtype == IMAGES.dtype
    assert (after.min() >= 0 and after.max() <= 1 + 1e-6) or name == "PixelErasing"  # its noise is clipped by the chain
    changed = (after - before).flatten(1).abs().amax(1) > 1e-4
    assert changed.float().mean() >= 0.5
    assert torch.equal(run(op), after)
    if name not in ("Equalize", "AutoContrast"):
        assert not torch.equal(run(op, epoch=1), after)


@pytest.mark.parametrize("name", OPERATIONS)
def test_probability(name):
    if not hasattr(operation(name).user, "p"):
        pytest.skip("always done")
    assert torch.equal(run(operation(name, p=0.0)), IMAGES)
    many = IMAGES[:1].expand(400, -1, -1, -1)
    drawn = operation(name, p=0.3).sample(Draws(0, 0, "student", torch.arange(400)), many.shape)["drawn"]
    assert 0.23 < drawn.float().mean() < 0.37
    with pytest.raises(ValueError, match="p is a probability"):
        operations()[name](p=1.5)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (2, 1, 32, 32), (2, 3, 40, 36)], ids=["empty", "gray", "wide"])
def test_shapes(name, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    if name == "PixelErasing" and shape[1] == 1:
        with pytest.raises(ValueError, match="mean has 3 numbers, but the images have 1 channels"):
            run(always(name), images, IDS[: len(images)])
        return
    after = run(always(name), images, IDS[: len(images)])
    assert after.shape == ((*images.shape[:2], 32, 32) if name == "PadCrop" else images.shape)
    assert not after.isnan().any()


def test_spectrograms_go_through_a_chain():
    """[B, C, F, T] with one channel: what is not an image."""
    sounds = torch.rand(3, 1, 40, 90, generator=torch.Generator().manual_seed(2)) * 0.9 + 1e-3
    chain = Chain([Op.of("SpecAugment", frequency_width=10, time_width=20)], (40, 90))
    after = chain(sounds, Draws(0, 0, "student", torch.arange(3)))
    assert after.shape == sounds.shape and (after == 0).any() and ((after == 0) | (after == sounds)).all()
