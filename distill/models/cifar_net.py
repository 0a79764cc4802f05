"""The base of the CIFAR networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from torch import Tensor, nn

from distill.models.staged import StagedNet


class CifarNet(StagedNet):
    """Base of the CIFAR networks: stem, stages, global mean, linear classifier, with the methods that timm expects.

    A subclass creates its modules, then calls ``finish``. ``stem`` runs before the first stage, ``between`` before each
    later one, ``last`` after all of them; in this class all three return their input.
    """

    classifier_name = "fc"
    stem_names: ClassVar[tuple[str, ...]] = ("conv1",)

    def finish(
        self, stages: Sequence[tuple[str, int, int]], num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        """Create the classifier, initialize the convs, and describe the stages for timm.

        Args:
            stages: (module name, channels, stride relative to the image) of each, shallow to deep.
            num_classes: width of the classifier.
            global_pool: timm's name of the pooling before it.
            drop_rate: dropout before it.
        """
        self.stages = [name for name, _, _ in stages]
        self.feature_info = [{"module": name, "num_chs": width, "reduction": step} for name, width, step in stages]
        self.num_features = self.head_hidden_size = stages[-1][1]
        self.drop_rate, self.pool_type = drop_rate, global_pool
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stem(self, x: Tensor) -> Tensor:
        return x

    def stage(self, number: int, x: Tensor) -> Tensor:
        return getattr(self, self.stages[number])(self.between(x) if number else x)

    def between(self, x: Tensor) -> Tensor:
        return x

    def keep_stages(self, count: int) -> None:
        for name in self.stages[count:]:
            delattr(self, name)
        self.stages = self.stages[:count]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stage = rf"^{self.stages[0].rstrip('0123456789')}(\d+)"  # timm orders layers by the numbers in their names
        blocks = stage if coarse else rf"{stage}(?:\.layer)?\.(\d+)"
        return {"stem": "|".join(f"^{name}" for name in self.stem_names), "blocks": blocks}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return getattr(self, self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.pool_type = self.pool_type if global_pool is None else global_pool
        self.global_pool, classifier = create_classifier(self.num_features, num_classes, pool_type=self.pool_type)
        setattr(self, self.classifier_name, classifier)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)


def stage_of(
    block: Callable[[int, int, int], nn.Module], inside: int, width: int, blocks: int, stride: int
) -> nn.Module:
    """A stage of ``blocks`` blocks.

    Args:
        block: makes a block from its input's channels, its output's channels, and the stride.
        inside: channels of the stage's input.
        width: channels of its output.
        blocks: their number.
        stride: of the first block.

    Returns:
        The blocks, one after another.
    """
    return nn.Sequential(block(inside, width, stride), *[block(width, width, 1) for _ in range(blocks - 1)])
