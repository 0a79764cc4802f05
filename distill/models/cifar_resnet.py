"""The ResNets for CIFAR, with convolutional or padded shortcuts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.cifar_net import CifarNet, stage_of


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, with ``channels`` channels of zeros, half of them before the others (option A)."""

    def __init__(self, stride: int, channels: int):
        super().__init__()
        self.stride, self.channels = stride, channels

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels={self.channels}"

    def forward(self, x: Tensor) -> Tensor:
        before = self.channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.channels - before))


class BasicBlock(nn.Module):
    """Two 3×3 convs of ``inside`` → ``width`` channels with batch norm; the input is added before the last ReLU.

    Args:
        inside: channels of the input.
        width: channels of the output.
        stride: of the first conv and of the shortcut.
        shortcut: where the shape changes, "conv": a 1×1 conv and batch norm; "pad": every ``stride``-th pixel, with
            as many channels of zeros before as after.
    """

    def __init__(self, inside: int, width: int, stride: int, shortcut: Literal["conv", "pad"] = "conv"):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if (stride != 1 or inside != width) and shortcut == "pad":
            self.downsample = PaddedShortcut(stride, width - inside)
        elif stride != 1 or inside != width:
            self.downsample = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(CifarNet):
    """ResNet of three stages of :class:`BasicBlock`.

    Args:
        depth: 6n + 2 for n blocks in each stage.
        widths: channels of the stem and of each stage.
        shortcut: of :class:`BasicBlock`.
        num_classes: width of the classifier.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    stem_names = ("conv1", "bn1")

    def __init__(
        self,
        depth: int = 20,
        widths: Sequence[int] = (16, 16, 32, 64),
        shortcut: Literal["conv", "pad"] = "conv",
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        block = partial(BasicBlock, shortcut=shortcut)
        self.layer1 = stage_of(block, widths[0], widths[1], blocks, 1)
        self.layer2 = stage_of(block, widths[1], widths[2], blocks, 2)
        self.layer3 = stage_of(block, widths[2], widths[3], blocks, 2)
        stages = [(f"layer{n + 1}", width, 2**n) for n, width in enumerate(widths[1:])]
        self.finish(stages, num_classes, global_pool, drop_rate)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))
