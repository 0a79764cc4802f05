"""The time of two views as a fraction of a training step, for ``augment.py``."""

from __future__ import annotations

import torch
from augment_sides import (
    MEAN,
    STD,
    source,
    strong,
)
from measure import Row, row, seconds_by_turns
from torch import Tensor, nn
from torch.nn import functional as F

from augment.dual import AugmentSettings, DualAugment
from augment.recipe import Op
from augment.views import InputSpec


def share_of_step(rounds: int) -> Row:
    """The time of two views over that of views and networks together, at 32 pixels, batch 128."""
    torch.manual_seed(0)
    spec = InputSpec((32, 32), MEAN, STD)
    crop, flip, *colors = strong(3)
    pad = Op.of("RandomCrop", padding=4)
    views = DualAugment(
        AugmentSettings(policy="weak_teacher", teacher=[pad, flip], student=[crop, flip, *colors]),
        [spec],
        spec,
        seed=0,
    )
    images, ids = source(128, 32), torch.arange(128)
    teacher, student = resnet(9).eval(), resnet(3).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
    x, labels = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(128) % 100

    def step() -> None:
        target = teacher(x)
        with torch.enable_grad():
            logits = student(x)
            loss = F.cross_entropy(logits, labels) + F.kl_div(logits.log_softmax(1), target.softmax(1))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    calls = iter(range(10**9))
    seconds = seconds_by_turns({"views": lambda: views(images, ids, next(calls)), "step": step}, rounds)
    fractions = [v / (v + s) for v, s in zip(seconds["views"], seconds["step"])]
    return row("two_views_share_of_step", fractions, "of the step")


def resnet(blocks: int) -> nn.Module:
    """The CIFAR ResNet of 6·blocks + 2 layers (He et al. 2016, section 4.2): 3 for resnet20, 9 for resnet56."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for stage in (16, 32, 64):
        for block in range(blocks):
            layers.append(Block(width, stage, 2 if stage > 16 and block == 0 else 1))
            width = stage
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100))
    return net.to(memory_format=torch.channels_last)


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )
        self.first_norm, self.second_norm = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - width

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)))
