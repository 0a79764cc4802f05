"""Recipes, users' operations, images and draws of the tests of fused chains."""

import torch
from torch import nn

from augment.chain import Chain
from augment.draws import Draws
from augment.recipe import Op
from augment.views import InputSpec

CROP = {"type": "RandomResizedCrop", "scale": [0.3, 1.0]}
FLIP = "RandomHorizontalFlip"
JITTER = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
GRAY = {"type": "RandomGrayscale", "p": 0.2}
BLUR = {"type": "RandomGaussianBlur", "kernel_size": [5, 5], "sigma": [0.1, 2.0], "p": 0.5}
ERASE = {"type": "RandomErasing", "p": 0.25}
TURN = {"type": "RandomRotation", "degrees": 30}
STRONG = [CROP, FLIP, JITTER, GRAY, BLUR, ERASE]
SPEC = InputSpec((24, 24))


class Shift:
    """A user's declarative operation, without a base class."""

    def sample(self, draws, shape):
        return {"by": draws.integers(0, -3, 4).float(), "drawn": draws.bernoulli(1, 0.5)}

    def affine(self, params, shape):
        matrix = torch.eye(3).repeat(shape[0], 1, 1)
        matrix[:, 0, 2] = params["by"]
        return matrix


class Tint:
    def sample(self, draws, shape):
        return {"tint": draws.uniform(0, (3,))}

    def color(self, images, params):
        return images * params["tint"].view(-1, 3, 1, 1)


class Middle:
    """Subtracts the mean of the image."""

    def sample(self, draws, shape):
        return {"drawn": draws.bernoulli(0, 0.5)}

    def statistics(self, images, params):
        return {"mean": images.mean((2, 3))}

    def color(self, images, params):
        return images - params["mean"][..., None, None] + 0.5


class Spread:
    def sample(self, draws, shape):
        return {"drawn": draws.bernoulli(0, 0.5)}

    def kernel(self, params, shape):
        return torch.full((shape[0], 3), 1 / 3), torch.full((shape[0], 3), 1 / 3)


class Hole:
    def sample(self, draws, shape):
        return {"at": draws.integers(0, 0, 10), "drawn": draws.bernoulli(1, 0.5)}

    def erase(self, params, shape):
        at, side = params["at"], torch.full_like(params["at"], 4)
        return torch.stack([at, at, side, side], 1), torch.tensor([0.1, 0.2, 0.3]).expand(shape[0], 3)


class Loud(nn.Module):
    def forward(self, images):
        return images + torch.rand(len(images), 1, 1, 1)


def path_of(cls):
    """The import path by which a recipe names a class."""
    return f"{cls.__module__}:{cls.__name__}"


def chain(*recipe, size=(24, 24), **settings):
    return Chain([Op.model_validate(op) for op in recipe], size, **settings)


def pictures(batch=8, height=32, width=36, channels=3):
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draws(batch=8, epoch=0):
    return Draws(0, epoch, "student", torch.arange(100, 100 + batch))
