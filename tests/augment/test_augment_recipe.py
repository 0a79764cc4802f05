"""Operations by name: what is accepted, and what a mistake is told."""

import subprocess
import sys

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from augment.draws import Draws
from augment.operation import BarrierOp, Sampled, SampledOp
from augment.recipe import Op

V2 = "torchvision.transforms.v2"
HERE = __name__


class Recipe(BaseModel):
    chain: list[Op]


class Tint(Sampled):
    """A user's operation that declares its draws."""

    def __init__(self, strength: float = 0.5):
        self.strength = strength

    def sample(self, draws, shape):
        return draws.uniform(0, (shape[1], 1, 1))

    def apply(self, images, params):
        return images * (1 - self.strength * params)


class Static(nn.Module):
    """A user's operation that draws from torch's global generator."""

    def __init__(self, size, strength: float = 0.1):
        super().__init__()
        self.size = size
        self.strength = strength

    def forward(self, images):
        keep = torch.rand(len(images), 1, 1, 1) < 0.5
        return torch.where(keep, images, images + self.strength * torch.randn_like(images))


class Nothing:
    pass


def error_of(operation):
    with pytest.raises(ValidationError) as caught:
        Recipe(chain=["RandomHorizontalFlip", operation])
    (error,) = caught.value.errors()
    return ".".join(map(str, error["loc"])), error["msg"]


@pytest.mark.parametrize(
    "operation, path, message",
    [
        ("RandomHorizontalFlp", "type", "did you mean 'RandomHorizontalFlip'?"),
        (
            {"type": "RandomResizedCrop", "scal": [0.3, 1]},
            "scal",
            "RandomResizedCrop has no argument 'scal'; did you mean",
        ),
        ({"type": "RandomAffine"}, "degrees", "RandomAffine needs the argument 'degrees'"),
        ({"type": "ColorJitter", "hue": 3.0, "p": 0.5}, "hue", "ColorJitter refuses its arguments: hue out of bounds"),
        ({"type": "RandomRotation", "degrees": "x"}, "degrees", "RandomRotation refuses its arguments"),
        *(
            (
                {"type": "RandomHorizontalFlip", "p": p},
                "p",
                f"RandomHorizontalFlip: p is a probability, 0 … 1, not {p!r}",
            )
            for p in (1.5, -0.1, "0.5", None, True)
        ),
        ({"type": "RandomResizedCrop", "size": 64}, "size", "must be a (height, width) tuple"),
        ({"type": "RandomResizedCrop", "p": 0.5}, "p", "p=0.5 is for a whole batch at once"),
        ({"type": "RandomHorizontalFlip", "p_batch": 0.5}, "p_batch", "p_batch=0.5 is for a whole batch at once"),
        ({"type": "RandomHorizontalFlip", "same_on_batch": True}, "same_on_batch", "every sample has its own draws"),
        ({"type": "Normalize", "mean": 0.5, "std": 0.5}, "type", "Normalize: leave it out; operations get and give"),
        ("Denormalize", "type", "Denormalize: leave it out"),
        ("ToTensor", "type", "ToTensor: leave it out"),
        ({"type": "ToFloat", "max_value": 255}, "type", "ToFloat: leave it out"),
        ("kornia.augmentation:Normalize", "type", "each network's view is normalized after the last one"),
        ({"type": f"{V2}:Normalize", "mean": [0.5], "std": [0.5]}, "type", "v2:Normalize: leave it out"),
        (f"{V2}:ToTensor", "type", "v2:ToTensor: leave it out"),
        ({"type": f"{V2}:ToDtype", "dtype": "uint8"}, "type", "v2:ToDtype: leave it out"),
        ("albumentations.pytorch:ToTensorV2", "type", "ToTensorV2: leave it out"),
        ({"type": "RandomGaussianBlur", "kernel_size": [4, 4], "sigma": [0.1, 2]}, "kernel_size", "[4, 4] is even"),
        ({"type": "RandomGaussianBlur", "kernel_size": 4, "sigma": [0.1, 2]}, "kernel_size", "4 is even"),
        ({"type": "RandomBoxBlur", "kernel_size": [3, 4]}, "kernel_size", "[3, 4] is even"),
        ({"type": "RandomMedianBlur", "kernel_size": [4, 3]}, "kernel_size", "[4, 3] is even"),
        (
            {"type": "RandomMotionBlur", "kernel_size": [4, 8], "angle": 3, "direction": 0.5},
            "kernel_size",
            "[4, 8] is even",
        ),
        ({"type": f"{V2}:GaussianBlur", "kernel_size": 4, "sigma": 1.0}, "kernel_size", "odd and positive"),
        ("RandomMixUpV2", "type", "RandomMixUpV2 is no 2-D augmentation of one image on its own"),
        ("AugmentationSequential", "type", "on its own; for several take Sequential, RandomApply, OneOf or SomeOf"),
        ("Compose", "type", "did you mean 'Sequential'?"),
        ("RandomChoice", "type", "did you mean 'OneOf'?"),
        ({"type": "OneOf"}, "transforms", "OneOf needs the argument 'transforms'"),
        ({"type": "OneOf", "transforms": []}, "transforms", "at least one"),
        ({"type": "OneOf", "transforms": "RandomInvert"}, "transforms", "transforms is a list of operations"),
        ({"type": "OneOf", "transforms": ["RandomInvrt"]}, "transforms.0.type", "did you mean 'RandomInvert'?"),
        ({"type": "OneOf", "transforms": ["RandomInvert", 3]}, "transforms.1", "expected an operation's name"),
        ({"type": "OneOf", "transforms": ["simclrr"]}, "transforms.0", "did you mean 'simclr'?"),
        ({"type": "OneOf", "transforms": ["RandomInvert"], "weights": [1, 2]}, "weights", "weights are 1 numbers"),
        ({"type": "SomeOf", "transforms": ["RandomInvert"], "n": 2}, "n", "n is a number or [fewest, most] in 0 … 1"),
        ({"type": "RandomApply", "transforms": ["RandomInvert"], "p": 1.5}, "p", "p is a probability"),
        ({"type": "RandomApply", "transform": ["RandomInvert"]}, "transform", "did you mean 'transforms'?"),
        (
            {
                "type": "SomeOf",
                "transforms": ["RandomInvert", {"type": "OneOf", "transforms": [{"type": "Normalize"}]}],
            },
            "transforms.1.transforms.0.type",
            "Normalize: leave it out",
        ),
        (
            {"type": f"{V2}:RandomChoice", "transforms": [f"{V2}:RandomInvert", "RandomInvert"]},
            "transforms.1.type",
            "v2:RandomChoice holds torchvision's transforms, and RandomInvert is none; for operations of every kind "
            "write OneOf",
        ),
        ("RandomDissolving", "type", "is no 2-D augmentation of one image on its own"),
        ("os:system", "type", "not a class"),
        ("subprocess:Popen", "type", "has neither sample() and apply() nor __call__()"),
        (f"{HERE}:Nothing", "type", "has neither sample() and apply() nor __call__()"),
        (f"{HERE}:Tnt", "type", "did you mean 'Tint'?"),
        ({"type": f"{HERE}:Tint", "strenght": 1}, "strenght", "did you mean 'strength'?"),
        (
            {"type": f"{HERE}:Static", "strength": 1, "scale": 2},
            "scale",
            "has no argument 'scale'; known: size, strength",
        ),
        (3, "", "expected an operation's name, or a mapping"),
        ({"scale": 1}, "", "expected an operation's name, or a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_key(operation, path, message):
    found_path, actual = error_of(operation)
    assert found_path == ".".join(filter(None, ["chain.1", path]))
    assert message in actual


def test_a_recipe_survives_being_written_and_read():
    chain = ["RandomHorizontalFlip", {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}]
    recipe = Recipe(chain=chain)
    assert recipe.model_dump(mode="json") == {"chain": chain}
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert {"type": "string"} in Recipe.model_json_schema()["$defs"]["Op"]["anyOf"]


def test_size_is_the_networks_unless_given():
    assert Op.model_validate("RandomResizedCrop").build((48, 40)).user.module.flags["size"] == (48, 40)
    given = Op.model_validate({"type": "RandomResizedCrop", "size": [20, 24]})
    assert given.build((48, 40)).user.module.flags["size"] == (20, 24) and not given.follows_network_size
    assert Op.model_validate(f"{HERE}:Static").build((48, 40)).user.size == (48, 40)


@pytest.mark.parametrize("name, kind", [("Tint", SampledOp), ("Static", BarrierOp)])
def test_a_users_operation_draws_by_sample(name, kind):
    op = Op.model_validate({"type": f"{HERE}:{name}", "strength": 0.3}).build((32, 32))
    assert isinstance(op, kind)
    images, ids = torch.rand(5, 3, 8, 8), torch.arange(5)

    def run(images, ids, epoch=0):
        return op(images, Draws(0, epoch, "student", ids).op("op"))

    state = torch.get_rng_state()
    together = run(images, ids)
    assert together.shape == images.shape and not torch.equal(together, images)
    assert torch.equal(together, torch.cat([run(images[n : n + 1], ids[n : n + 1]) for n in range(5)]))
    assert torch.equal(together, run(images.flip(0), ids.flip(0)).flip(0))
    assert not torch.equal(together, run(images, ids, epoch=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_slow_packages_are_imported_only_when_named():
    code = (
        "import sys; from augment.dual import AugmentSettings; from augment.recipe import Op\n"
        "assert not {'kornia', 'timm', 'lightning', 'torchvision'} & set(sys.modules)\n"
        "AugmentSettings(student=[], teacher=[]); assert 'kornia' not in sys.modules\n"
        "from augment.ops import operations; assert 'PadCrop' in operations()\n"
        "assert not {'kornia', 'timm', 'lightning', 'torchvision', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
