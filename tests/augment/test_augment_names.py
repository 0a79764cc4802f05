"""Names and objects of every source: what they become, and what is refused."""

import pytest
import torch
from kornia import augmentation as K
from torch import nn
from torchvision.transforms import v2

from augment.chain import Chain
from augment.draws import Draws
from augment.kornia_ops.unfused import kornia_classes
from augment.names import OperationError, _points, find_class, known_operations
from augment.ops import operations
from augment.recipe import Op

IMAGES = torch.rand(5, 3, 24, 20, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(5) * 7 + 3
V2 = "torchvision.transforms.v2"
MODULE = """
class Fade:
    "Fades by a number drawn for each sample."
    def __init__(self, by: float = 0.5):
        self.by = by
    def sample(self, draws, shape):
        return {"by": draws.uniform(0, (1, 1, 1)) * self.by}
    def apply(self, images, params):
        return images * (1 - params["by"])
"""


def install(folder, distribution, **points):
    """Metadata of an installed package with entry points, as pip leaves it."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[distill.augment]\n{lines}\n")
    _points.cache_clear()  # a process reads what is installed once


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "fading.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(chain, images=IMAGES, ids=IDS, epoch=0):
    return chain(images, Draws(0, epoch, "student", ids))


def test_an_entry_point_is_a_name_like_any_other(site):
    install(site, "faders", Fade="fading:Fade")
    chain = Chain([Op.model_validate({"type": "Fade", "by": 0.9})], (24, 20))
    assert not torch.equal(run(chain), IMAGES)
    assert torch.equal(run(chain), run(chain, IMAGES.flip(0), IDS.flip(0)).flip(0))
    line = next(known for known in known_operations() if known.name == "Fade")
    assert (line.source, line.what) == ("faders", "Fades by a number drawn for each sample.")
    with pytest.raises(OperationError, match="no operation is called 'Fde'; did you mean 'Fade'"):
        find_class("Fde")


def test_two_plugins_of_one_name_are_both_named(site):
    install(site, "faders", Fade="fading:Fade")
    install(site, "other-faders", Fade="elsewhere:Fade")
    with pytest.raises(OperationError, match=r"'Fade' is declared by faders \(fading:Fade\) and other-faders"):
        find_class("Fade")
    assert find_class("fading:Fade").__name__ == "Fade"


def test_a_plugin_takes_no_name_of_ours_or_kornias(site):
    install(site, "faders", ColorJitter="fading:Fade")
    with pytest.raises(OperationError, match="'ColorJitter' of faders is already an operation of kornia"):
        find_class("ColorJitter")


def test_a_plugin_takes_no_name_that_recipes_have(site):
    install(site, "faders", fade="fading:Fade")
    with pytest.raises(OperationError, match="'fade' of faders needs a capital letter"):
        find_class("fade")


def test_a_broken_plugin_is_named_and_does_not_hide_the_others(site):
    install(site, "faders", Fade="fading:Fde", Gone="gone:Fade")
    with pytest.raises(OperationError, match="Fade: 'fading:Fde': module 'fading' has no 'Fde'; did you mean 'Fade'"):
        find_class("Fade")
    listed = {known.name: known.what for known in known_operations()}
    assert listed["Gone"].startswith("error: Gone: 'gone:Fade': no module named 'gone'")
    assert "RandomHorizontalFlip" in listed


def test_our_names_are_not_kornias():
    assert not set(operations()) & set(kornia_classes())


@pytest.mark.parametrize(
    "name, message",
    [
        (f"{V2}:RandomHorizontalFlp", "did you mean 'RandomHorizontalFlip'"),
        (f"{V2}:MixUp", "mixes the images of a batch"),
        (f"{V2}:InterpolationMode", "has neither sample"),
        ("kornia.augmentation:RandomMixUpV2", "is no 2-D augmentation of one image on its own"),
        ("albumentations:GaussNoise", "run on the loader's side, in data.loader_ops"),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(OperationError, match=message):
        Op.of(name).build((24, 20))


TRANSFORMS = [
    v2.RandomHorizontalFlip(),
    v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    v2.RandomResizedCrop((24, 20)),
    v2.RandomErasing(1.0),
    v2.RandAugment(),
    v2.GaussianBlur(3),
    v2.RandomChoice([v2.RandomRotation(30), v2.RandomGrayscale(1.0)]),
    v2.RandomPhotometricDistort(p=1.0),
    v2.ElasticTransform(sigma=1.0),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_torchvision_draws_by_sample(transform):
    chain = Chain([transform], (24, 20))
    state = torch.get_rng_state()
    together = run(chain)
    assert torch.equal(torch.get_rng_state(), state)
    assert together.dtype == torch.float32 and together.shape == IMAGES.shape and not torch.equal(together, IMAGES)
    assert torch.equal(together, run(chain))
    assert torch.equal(together, torch.cat([run(chain, IMAGES[n : n + 1], IDS[n : n + 1]) for n in range(5)]))
    same = IMAGES[:1].expand(40, -1, -1, -1)
    assert len({bytes(image.numpy()) for image in run(chain, same, torch.arange(40))}) > 1
    assert not torch.equal(run(chain, same, torch.arange(40)), run(chain, same, torch.arange(40), epoch=1))


def test_a_torchvision_flip_is_fair():
    chain = Chain([v2.RandomHorizontalFlip(0.3)], (24, 20))
    flipped = run(chain, IMAGES[:1].expand(1000, -1, -1, -1), torch.arange(1000)).ne(IMAGES[:1]).flatten(1).any(1)
    assert 0.25 < flipped.float().mean() < 0.35


def test_torchvision_by_name_has_the_networks_size_and_its_geometry():
    crop = Op.model_validate({"type": f"{V2}:RandomResizedCrop", "scale": [0.3, 1.0]})
    jitter = Op.model_validate({"type": f"{V2}:ColorJitter", "brightness": 0.4})
    assert crop.follows_network_size and crop.geometric and not jitter.geometric
    assert run(Chain([crop, jitter], (16, 12))).shape == (5, 3, 16, 12)


def test_an_object_draws_as_its_name():
    for made, name in [
        (K.RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (v2.RandomHorizontalFlip(), f"{V2}:RandomHorizontalFlip"),
    ]:
        assert torch.equal(run(Chain([made], (24, 20))), run(Chain([Op.of(name)], (24, 20))))


class Halve(nn.Module):
    def forward(self, images):
        return images / 2


def test_objects_of_every_shape_make_a_chain():
    chain = Chain([Halve(), lambda images: images + 0.1, K.RandomVerticalFlip(p=1.0)], (24, 20))
    torch.testing.assert_close(run(chain), (IMAGES / 2 + 0.1).flip(2))


@pytest.mark.parametrize(
    "item, message",
    [
        (Halve, "Halve is a class; give the chain an object of it"),
        (3, "int is no operation"),
        (K.RandomHorizontalFlip(same_on_batch=True), "same_on_batch is not possible"),
        (K.AugmentationSequential(K.RandomHorizontalFlip()), "on its own; for several take Sequential, RandomApply"),
        (K.Normalize(0.5, 0.5), "Normalize: leave it out"),
        (v2.Normalize([0.5], [0.5]), "Normalize: leave it out"),
        (v2.ToDtype(torch.uint8), "ToDtype: leave it out"),
    ],
)
def test_objects_that_are_refused(item, message):
    with pytest.raises(OperationError, match=message):
        Chain([item], (24, 20))


def test_torchvision_results_that_make_no_batch():
    with pytest.raises(ValueError, match=r"ScaleJitter makes images of different sizes, \[\(3, "):
        run(Chain([v2.ScaleJitter((24, 20), (0.5, 2.0))], (24, 20)))
    with pytest.raises(ValueError, match=r"Lambda must return a tensor \[C, H, W\], not list"):
        run(Chain([v2.Lambda(lambda image: [image])], (24, 20)))
