"""LeNet as continual learning compares it: 20 and 50 channels, 800 and 500 hidden units. Registered as ``lenet_20_50``.

Two 5×5 convs without padding, each with batch norm, ReLU and 2×2 max pooling, then two hidden linear layers with batch
norm and ReLU, and a linear classifier. 32 × 32 pixels: 1,430,610 parameters without the classifier. Nothing is
pretrained.

Paper: the network of HALRP's experiments (arXiv 2311.15161) and of APD (arXiv 1902.09432), with batch norm as in the
former.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from distill.models.staged import StagedNet


class LeNet(StagedNet):
    """``[B, in_chans, img_size, img_size] → [B, num_classes]``.

    Args:
        num_classes: width of the classifier; 0: none.
        in_chans: channels of the images.
        img_size: height and width of the images in pixels, which the first linear layer is built for.
        widths: channels of the convs, and units of the hidden layers.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 32,
        widths: tuple[int, int, int, int] = (20, 50, 800, 500),
        drop_rate: float = 0.0,
    ):
        super().__init__()
        first, second, third, fourth = widths
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size  # a list, in a timm folder
        area = (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
        if min(height, width) < 16:
            raise ValueError(f"LeNet needs images of 16 pixels or more, not {min(height, width)}")
        self.stages = ["block1", "block2"]
        self.block1, self.block2 = _convs(in_chans, first), _convs(first, second)
        self.hidden1, self.hidden2 = _units(second * area, third), _units(third, fourth)
        self.feature_info = [
            {"module": "block1", "num_chs": first, "reduction": 2},
            {"module": "block2", "num_chs": second, "reduction": 4},
        ]
        self.num_features, self.head_hidden_size, self.drop_rate = second, fourth, drop_rate
        self.reset_classifier(num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return x

    def stage(self, number: int, x: Tensor) -> Tensor:
        return getattr(self, self.stages[number])(x)

    def keep_stages(self, count: int) -> None:
        for name in self.stages[count:]:
            delattr(self, name)
        self.stages = self.stages[:count]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^block1", "blocks": r"^(?:block|hidden)(\d+)"}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Create a new classifier; the maps are flattened, so ``global_pool`` has no effect."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.hidden2(self.hidden1(x.flatten(1)))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)


def _convs(inside: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, width, 5), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))


def _units(inside: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inside, width), nn.BatchNorm1d(width), nn.ReLU())


default_cfgs = generate_default_cfgs(
    {
        "lenet_20_50.untrained": {
            "num_classes": 100,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5071, 0.4867, 0.4408),
            "std": (0.2675, 0.2565, 0.2761),
            "first_conv": "block1.0",
            "classifier": "fc",
        }
    }
)


@register_model
def lenet_20_50(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """LeNet 20-50-800-500 for images of 32 × 32 pixels."""
    features = {"out_indices": (0, 1), "feature_cls": "getter"}
    return build_model_with_cfg(LeNet, "lenet_20_50", pretrained, feature_cfg=features, **arguments)
