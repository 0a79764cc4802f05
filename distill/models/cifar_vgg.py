"""The VGGs for CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.cifar_net import CifarNet


class CifarVGG(CifarNet):
    """VGG of five stages of 3×3 convs with batch norm and ReLU, max pooling after the first three.

    Args:
        depth: convs in each stage.
        num_classes: width of the classifier.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    classifier_name = "classifier"
    stem_names = ("block0.0", "block0.1")

    def __init__(
        self,
        depth: int = 1,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        widths = [64, 128, 256, 512, 512]
        for n, (inside, width) in enumerate(zip([in_chans, *widths], widths)):
            layers: list[nn.Module] = []
            for source in [inside, *[width] * (depth - 1)]:
                layers += [nn.Conv2d(source, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            self.add_module(f"block{n}", nn.Sequential(*layers))
        stages = [(f"block{n}", width, 2 ** min(n, 3)) for n, width in enumerate(widths)]
        self.finish(stages, num_classes, global_pool, drop_rate)

    def between(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if x.shape[1] < 512 else x
