"""The small CIFAR networks of the distillation literature, registered with timm as ``<name>_cifar``.

``resnet20``, ``32``, ``44``, ``56``, ``110`` (He et al., arXiv 1512.03385: three stages 16, 32, 64 wide), ``resnet8x4``
and ``resnet32x4`` (stages 64, 128, 256 wide), ``wrn_16_2``, ``wrn_40_1``, ``wrn_40_2`` (Zagoruyko and Komodakis, arXiv
1605.07146) and ``vgg8``, ``vgg13`` (with batch norm, one linear layer). On 32 × 32 pixels, 100 classes.

Modules have the names of the checkpoints that go with CRD, DKD and others (``layer1.0.conv1``, ``block1.layer.0.bn1``,
``block0.0`` …), so such a file loads with ``checkpoint: FILE``. The shortcuts of ``resnet*`` are a 1×1 conv and batch
norm where the shape changes. Input is 32 × 32 pixels; other sizes work, since pooling is global.

The first paper pads its shortcuts with zeros (option A, no parameters), and so do ``resnet20_cifar10``, ``32``, ``44``,
``56`` and ``110``, with 10 classes and ImageNet's normalization: those of the public checkpoints for CIFAR-10 of this
kind, whose head is called ``linear``. A file of that kind loads under ``resnet20_cifar`` … too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn


class CifarNet(nn.Module):
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

    def last(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stage = rf"^{self.stages[0].rstrip('0123456789')}(\d+)"  # timm orders layers by the numbers in their names
        blocks = stage if coarse else rf"{stage}(?:\.layer)?\.(\d+)"
        return {"stem": "|".join(f"^{name}" for name in self.stem_names), "blocks": blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        assert not enable, "gradient checkpointing is not supported"

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return getattr(self, self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.pool_type = self.pool_type if global_pool is None else global_pool
        self.global_pool, classifier = create_classifier(self.num_features, num_classes, pool_type=self.pool_type)
        setattr(self, self.classifier_name, classifier)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's contract: the maps after the stages, and the final features.

        Args:
            x: images [B, 3, H, W].
            indices: which stages, as timm reads them; None: all.
            norm: without effect, as there is no norm after the stages.
            stop_early: run no stage after the last one of ``indices``.
            output_fmt: "NCHW" only.
            intermediates_only: leave the final features out.

        Returns:
            ``(final features, maps)``, or the maps alone.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        take, deepest = feature_take_indices(len(self.stages), indices)
        x, maps = self.stem(x), []
        for number in range(deepest + 1 if stop_early else len(self.stages)):
            x = self.stage(number, x)
            if number in take:
                maps.append(x)
        return maps if intermediates_only else (self.last(x), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's contract: remove the stages after the last one of ``indices``.

        Args:
            indices: which stages, as timm reads them.
            prune_norm: without effect, as there is no norm after the stages.
            prune_head: remove the classifier too.

        Returns:
            The numbers of the stages of ``indices``.
        """
        take, deepest = feature_take_indices(len(self.stages), indices)
        for name in self.stages[deepest + 1 :]:
            delattr(self, name)
        self.stages = self.stages[: deepest + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(len(self.stages)):
            x = self.stage(number, x)
        return self.last(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


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
        self.layer1 = _stage(block, widths[0], widths[1], blocks, 1)
        self.layer2 = _stage(block, widths[1], widths[2], blocks, 2)
        self.layer3 = _stage(block, widths[2], widths[3], blocks, 2)
        stages = [(f"layer{n + 1}", width, 2**n) for n, width in enumerate(widths[1:])]
        self.finish(stages, num_classes, global_pool, drop_rate)

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))


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
            stage.add_module("layer", _stage(PreActBlock, inside, width, blocks, 1 if n == 0 else 2))
            self.add_module(f"block{n + 1}", stage)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        stages = [(f"block{n + 1}", width, 2**n) for n, width in enumerate(widths)]
        self.finish(stages, num_classes, global_pool, drop_rate)

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def last(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(x))


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


def _stage(block: Callable[[int, int, int], nn.Module], inside: int, width: int, blocks: int, stride: int) -> nn.Module:
    return nn.Sequential(block(inside, width, stride), *[block(width, width, 1) for _ in range(blocks - 1)])


_X4 = (32, 64, 128, 256)
_DEPTHS = (20, 32, 44, 56, 110)
NETWORKS: dict[str, tuple[type[CifarNet], dict[str, Any]]] = {
    **{f"resnet{depth}": (CifarResNet, {"depth": depth}) for depth in _DEPTHS},
    **{f"resnet{depth}x4": (CifarResNet, {"depth": depth, "widths": _X4}) for depth in (8, 32)},
    **{f"wrn_{d}_{w}": (WideResNet, {"depth": d, "widen": w}) for d, w in ((16, 2), (40, 1), (40, 2))},
    **{f"vgg{5 * convs + 3}": (CifarVGG, {"depth": convs}) for convs in (1, 2)},
}
"""Name in the literature → class and arguments; registered as ``<name>_cifar``."""
PADDED = {f"resnet{depth}": (CifarResNet, {"depth": depth, "shortcut": "pad"}) for depth in _DEPTHS}
"""Name in the literature → class and arguments; registered as ``<name>_cifar10``."""

# Means and deviations of CIFAR-100's training images, on which the checkpoints for it were trained; those for CIFAR-10
# with padded shortcuts were trained with ImageNet's.
_CIFAR100 = {"num_classes": 100, "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
_CIFAR10 = {"num_classes": 10, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def padded_variant(name: str, tensors: Iterable[str]) -> str | None:
    """The network with padded shortcuts for a file's tensors.

    Args:
        name: of a network, as timm knows it.
        tensors: names in the file.

    Returns:
        ``resnet20_cifar10`` for ``resnet20_cifar``, if the file has the blocks of that network and no weights of
        shortcuts; None if not.
    """
    depth, _, data = name.partition("_")
    tensors = list(tensors)
    blocks = any(tensor.endswith("layer2.0.conv1.weight") for tensor in tensors)
    shortcuts = any(f"layer2.0.{shortcut}." in tensor for tensor in tensors for shortcut in ("downsample", "shortcut"))
    return f"{depth}_cifar10" if data == "cifar" and depth in PADDED and blocks and not shortcuts else None


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The names of a checkpoint as the networks have them; other code calls ``downsample`` ``shortcut``."""
    return {name.replace(".shortcut.", ".downsample."): tensor for name, tensor in state.items()}


def _cfg(cls: type[CifarNet], trained: dict[str, Any]) -> dict[str, Any] | PretrainedCfg:
    return {
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": cls.stem_names[0],
        "classifier": cls.classifier_name,
        **trained,
    }


default_cfgs = generate_default_cfgs(
    {f"{name}_cifar.untrained": _cfg(cls, _CIFAR100) for name, (cls, _) in NETWORKS.items()}
    | {f"{name}_cifar10.untrained": _cfg(cls, _CIFAR10) for name, (cls, _) in PADDED.items()}
)


def _register(name: str, cls: type[CifarNet], own: dict[str, Any]) -> None:
    def make(pretrained: bool = False, **arguments: Any) -> nn.Module:
        feature_cfg = {"out_indices": tuple(range(5 if cls is CifarVGG else 3)), "feature_cls": "getter"}
        adapted: dict[str, Any] = {"feature_cfg": feature_cfg, "pretrained_filter_fn": checkpoint_filter_fn}
        return build_model_with_cfg(cls, name, pretrained, **adapted, **{**own, **arguments})

    make.__name__, make.__module__ = name, __name__
    register_model(make)


for _name, (_cls, _own) in NETWORKS.items():
    _register(f"{_name}_cifar", _cls, _own)
for _name, (_cls, _own) in PADDED.items():
    _register(f"{_name}_cifar10", _cls, _own)
