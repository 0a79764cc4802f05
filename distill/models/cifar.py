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

from collections.abc import Iterable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from distill.models.cifar_net import CifarNet
from distill.models.cifar_resnet import CifarResNet
from distill.models.cifar_vgg import CifarVGG
from distill.models.cifar_wide import WideResNet

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
