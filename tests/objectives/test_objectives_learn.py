"""Every self-supervised objective learns: features of digits that are turned and moved are worth more afterwards."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import distill
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.views import ViewsObjective
from distill.training.knn import knn

pytestmark = pytest.mark.slow

BATCH, WIDTH, RATE = 128, 64, 3e-3
STEPS = {"byol": 300, "moco": 300}
"""Of the objectives that learn slowly; the others take 150."""
OBJECTIVES = {
    "simclr": {},
    "barlow_twins": {},
    "vicreg": {},
    "byol": {},
    "moco": {"queue": 512},
}


def moved(images_B1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned by up to 20°, scaled by up to 15 % and shifted by up to 1.5 of 10 pixels, with noise."""
    count = len(images_B1HW)

    def uniform(most: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * most

    angle, scale = uniform(math.radians(20)), 1 + uniform(0.15)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([torch.stack([cos, -sin, uniform(0.3)], 1), torch.stack([sin, cos, uniform(0.3)], 1)], 1)
    grid = F.affine_grid(matrix, list(images_B1HW.shape), align_corners=False)
    views = F.grid_sample(images_B1HW, grid, align_corners=False)
    return views + 0.1 * torch.randn(views.shape, generator=generator)


def encoder() -> nn.Sequential:
    hidden = [nn.Linear(100, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU())


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unlabeled images [N, 1, 10, 10] to learn from, moved ones to evaluate with, classes, and a random order."""
    images, labels = load_digits(return_X_y=True)
    plain = F.pad(torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, (1, 1, 1, 1))
    generator = torch.Generator().manual_seed(0)
    return plain, moved(plain, generator), torch.from_numpy(labels), torch.randperm(len(plain), generator=generator)


def accuracy(model: nn.Module, digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Of k nearest neighbors, on images that were not learned from."""
    _, images, labels, order = digits
    with torch.no_grad():
        features = model.eval()(images)
    train, test = order[:1000], order[1000:]
    votes = knn(features[train], labels[train], features[test], classes=10)
    return (votes.argmax(1) == labels[test]).float().mean().item()


def learn(objective: Objective, model: nn.Module, images: Tensor, steps: int) -> None:
    """Train an encoder, and an average of it where the objective reads one."""
    generator = torch.Generator().manual_seed(1)
    average, reads = copy.deepcopy(model).requires_grad_(False), objective.reads_momentum
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=RATE)
    model.train()
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        views = [moved(images[rows], generator) for _ in range(2)]
        seen = [Features(pooled=model(view)) for view in views]
        keys = [Features(pooled=average(view)) for view in reversed(views)] if reads else None
        batch = Targets(torch.full((BATCH,), -1))
        if isinstance(objective, ViewsObjective):
            loss = objective.loss_of_views(seen, keys, batch)
        else:
            assert keys is not None
            loss = torch.stack([objective(*pair, batch) for pair in zip(seen, keys)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = 1 - 0.1 * (math.cos(math.pi * step / steps) + 1) / 2
        objective.follow(decay)
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters()):
                kept.lerp_(new, 1 - decay)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_learns(name: str, digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = encoder()
    objective = distill.create_objective(
        name, student=FeatureShapes(10, pooled=WIDTH), hidden=64, dim=32, **OBJECTIVES[name]
    )
    before = accuracy(model, digits)
    learn(objective, model, digits[0][digits[3][:1000]], STEPS.get(name, 150))
    after = accuracy(model, digits)
    assert after > before + 0.05, f"{before:.3f} to {after:.3f}"
