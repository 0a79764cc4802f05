"""ResNet-18 for small images, as self-supervised learning on CIFAR trains it. Registered as ``resnet18_cifar``.

timm's ResNet-18 with a 3×3 stem conv of stride 1 and without max pooling: 512 features, maps of 32, 16, 8 and 4 pixels
for 32 × 32 images, 11,168,832 parameters without the classifier. Nothing is pretrained.

Papers: SimCLR, arXiv 2002.05709 (its appendix on CIFAR-10); CaSSLe, arXiv 2112.04215, whose stem conv pads by 2 instead
of 1.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

STEM, REDUCTIONS = 64, (1, 1, 2, 4, 8)


class SmallStemResNet(ResNet):
    """timm's ResNet whose stem keeps the size of the image.

    Args:
        in_chans: channels of the images.
        arguments: further ones of timm's ``ResNet``.
    """

    def __init__(self, in_chans: int = 3, **arguments: Any):
        super().__init__(in_chans=in_chans, **arguments)
        stem = nn.Conv2d(in_chans, STEM, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())
        self.feature_info = [
            {**own, "reduction": reduction} for own, reduction in zip(self.feature_info, REDUCTIONS, strict=True)
        ]


default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar.untrained": {
            "num_classes": 100,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5071, 0.4867, 0.4408),
            "std": (0.2675, 0.2565, 0.2761),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


@register_model
def resnet18_cifar(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ResNet-18 for images of 32 × 32 pixels."""
    own = {"block": BasicBlock, "layers": (2, 2, 2, 2), **arguments}
    return build_model_with_cfg(SmallStemResNet, "resnet18_cifar", pretrained, **own)
