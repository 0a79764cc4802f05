"""The wide ResNets for CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.cifar_net import CifarNet, stage_of


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convs. A 1×1 shortcut reads the first activation.

    Args:
        inside: channels of the input.
        width: channels of the output.
        stride: of the first conv and of the shortcut.
    """

    def __init__(self, inside: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inside, width, 1, stride, bias=False) if inside != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class WideResNet(CifarNet):
    """Wide ResNet of three stages of :class:`PreActBlock`.

    Args:
        depth: 6n + 4 for n blocks in each stage.
        widen: factor of the stages' 16, 32 and 64 channels.
        num_classes: width of the classifier.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        depth: int = 16,
        widen: int = 2,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        for n, (inside, width) in enumerate(zip([16, *widths], widths)):
            stage = nn.Sequential()
            stage.add_module("layer", stage_of(PreActBlock, inside, width, blocks, 1 if n == 0 else 2))
            self.add_module(f"block{n + 1}", stage)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        stages = [(f"block{n + 1}", width, 2**n) for n, width in enumerate(widths)]
        self.finish(stages, num_classes, global_pool, drop_rate)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def last(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(x))
