"""``ddl_resnet``: a small ResNet for training from scratch whose residual connections are Deep Delta Learning's.

Stages of blocks at widths 32, 64, 128, 256, two blocks each, on 32 × 32 pixels: a 3×3 stem, then every stage after the
first halves the map with a 2×2 conv of stride 2. A block's sublayer is 3×3 conv, batch norm, ReLU, 3×3 conv, batch
norm, on the RMS-normalized state; each pixel is a token. Registered with timm, with timm's methods for features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, RmsNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from distill.models.ddl import DeltaResidual, compression, expansion
from distill.models.staged import StagedNet


class DeltaConvBlock(nn.Module):
    """Two 3×3 convs that compute the direction, and the delta residual. States [B, d · m, H, W].

    Args:
        dim: d, channels of the convs.
        values: as in :class:`DeltaResidual`.
        gate: as there.
        value: as there.
    """

    def __init__(self, dim: int, values: int, gate: str, value: str):
        super().__init__()
        self.read = compression(dim, values)
        self.norm = RmsNorm(dim)
        self.conv1, self.bn1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.act = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.delta = DeltaResidual(dim, values, gate, value)  # type: ignore[arg-type]

    def forward(self, state: Tensor) -> Tensor:
        tokens = state.movedim(1, -1)
        x = self.read(tokens)
        c = self.norm(x)
        proposal = self.bn2(self.conv2(self.act(self.bn1(self.conv1(c.movedim(-1, 1))))))
        return self.delta(tokens, x, c, proposal.movedim(1, -1)).movedim(-1, 1)


class ChannelsLast(nn.Module):
    """Applies a module for the last axis to the channels of a map [B, C, H, W]."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.movedim(1, -1)).movedim(-1, 1)


class DeltaResNet(StagedNet):
    """Stem, stages of :class:`DeltaConvBlock`, global mean, linear classifier.

    Args:
        num_classes: width of the classifier.
        in_chans: channels of the images.
        widths: d of each stage.
        depths: number of blocks of each stage.
        values: as in :class:`DeltaResidual`.
        gate: as there.
        value: as there.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        values: int = 1,
        gate: str = "linear",
        value: str = "linear",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            ChannelsLast(expansion(widths[0], values)),
        )
        stages, self.feature_info = [], []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = nn.Sequential()
            if number:
                halve = nn.Conv2d(widths[number - 1] * values, width * values, 2, stride=2, bias=False)
                stage.add_module("down", nn.Sequential(halve, nn.BatchNorm2d(width * values)))
            for block in range(depth):
                stage.add_module(str(block), DeltaConvBlock(width, values, gate, value))
            stages.append(stage)
            self.feature_info.append({"num_chs": width * values, "reduction": 2**number, "module": f"stages.{number}"})
        self.stages = nn.Sequential(*stages)
        self.read = ChannelsLast(nn.Sequential(compression(widths[-1], values), RmsNorm(widths[-1])))
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = ClassifierHead(widths[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": blocks}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def stage(self, number: int, x: Tensor) -> Tensor:
        return self.stages[number](x)

    def last(self, x: Tensor) -> Tensor:
        return self.read(x)

    def keep_stages(self, count: int) -> None:
        self.stages = self.stages[:count]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)


default_cfgs = generate_default_cfgs(
    {
        "ddl_resnet.untrained": {
            "input_size": (3, 32, 32),
            "num_classes": 1000,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "stem.0",
            "classifier": "head.fc",
        }
    }
)


@register_model
def ddl_resnet(pretrained: bool = False, **arguments: Any) -> DeltaResNet:
    """Four stages of two blocks, 32 to 256 wide; there are no pretrained weights."""
    feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(DeltaResNet, "ddl_resnet", pretrained, feature_cfg=feature_cfg, **arguments)
