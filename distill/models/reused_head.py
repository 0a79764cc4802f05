"""A student with the teacher's classifier: convs project its last map to the features that the classifier reads.

``p = mean over H, W of P(F)``, ``z = W p + b``: F [B, S, H, W] is the output of the student's ``forward_features``,
P the convs, p [B, width] in the space of the teacher's pooled features, W and b the teacher's classifier, frozen.

Shape suffixes: B batch, S channels of the network, H W map size, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.deltas.base import tensor_bytes
from distill.deltas.blocks import empty_image, eval_mode
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.models.settings import ReusedHead
from distill.models.weights import NetworkError

ARCHITECTURE = "reused_head"
"""timm's entry point for networks with such a head, see ``reused_head_entry``."""
CHILD = "reused_head"
"""Name of the projector in the network."""


class Projector(nn.Module):
    """The convs P: 1×1 to ``width / factor`` channels, 3×3, 1×1 to ``width``; batch norm after each, ReLU between.

    Its ``forward_head`` and ``reset_classifier`` replace those of the network, so it replaces pooling and head.

    Args:
        settings: width and factor.
        network: a timm model, which gets a new classifier of ``width`` inputs.
        channels: S, of the network's last map.
        classifier: name of the network's classifier.
    """

    def __init__(self, settings: ReusedHead, network: nn.Module, channels: int, classifier: str):
        super().__init__()
        self.settings, self.classifier = settings, classifier
        width, hidden = settings.width, max(1, settings.width // settings.factor)
        self.convs = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        own = [*network.get_submodule(classifier).parameters()]
        self.replaced = sum(p.numel() for p in own), tensor_bytes(own)
        self._network = (network,)  # in a tuple, so that it is no submodule of its own submodule
        self._new_classifier(network.num_classes)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"width={self.settings.width}, factor={self.settings.factor}, classifier={self.classifier}"

    def forward_head(self, final: Tensor, pre_logits: bool = False) -> Tensor:
        """Replaces the network's: final features → logits [B, K], or pooled features [B, width]."""
        (network,) = self._network
        pooled = self.convs(as_map(network, final)).mean((2, 3))
        return pooled if pre_logits else network.get_submodule(self.classifier)(pooled)

    def reset_classifier(self, num_classes: int, *unused: Any, **also_unused: Any) -> None:
        """Replaces the network's: a new, freshly initialized classifier.

        Args:
            num_classes: its width.
            unused: accepted for timm's interface, such as its ``global_pool``; ignored.
            also_unused: likewise, by keyword.
        """
        self._network[0].num_classes = num_classes  # type: ignore[assignment]
        self._new_classifier(num_classes)

    def _new_classifier(self, num_classes: int) -> None:
        (network,) = self._network
        like = network.get_submodule(self.classifier).weight
        layer = nn.Linear(self.settings.width, num_classes, device=like.device, dtype=like.dtype)  # type: ignore[arg-type]
        network.set_submodule(self.classifier, layer)


def reuse_head(network: nn.Module, settings: ReusedHead) -> None:
    """Give a timm network such a head, in place, with a new, frozen classifier to load the teacher's weights into.

    Module names stay the same, with one new module ``reused_head``. It counts as part of the classifier
    (``pretrained_cfg`` names both), so a delta file holds both as the head.

    Raises:
        NetworkError: its classifier is not one linear layer, or its features are neither a map nor tokens on a grid.
    """
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    name = config["architecture"]
    if hasattr(network, CHILD):
        raise NetworkError(f"{name} already has the head of another network")
    names = classifier_names(network)
    if len(names) != 1 or not isinstance(network.get_submodule(names[0]), nn.Linear):
        raise NetworkError(f"{name} has no classifier that is one linear layer, so it cannot take another network's")
    with torch.no_grad(), eval_mode(network):
        channels = as_map(network, network.forward_features(empty_image(network))).shape[1]  # type: ignore[operator]
    projector = Projector(settings, network, channels, names[0]).to(next(network.parameters()).device)
    network.add_module(CHILD, projector.train(network.training))
    network.get_submodule(names[0]).requires_grad_(False)
    network.forward_head = projector.forward_head  # type: ignore[assignment]
    network.reset_classifier = projector.reset_classifier  # type: ignore[assignment]
    network.pretrained_cfg = {**config, "classifier": (CHILD, names[0])}  # type: ignore[assignment]


def reused(network: nn.Module) -> ReusedHead | None:
    """Settings of the head that :func:`reuse_head` gave a network; None if it has none, or timm created it with one."""
    projector = getattr(network, CHILD, None)
    made_with_it = network.pretrained_cfg["architecture"] == ARCHITECTURE  # type: ignore[index]
    return None if projector is None or made_with_it else projector.settings


@dataclass(frozen=True)
class Enlargement:
    """How much larger a network is with a reused head than with its own."""

    parameters: int
    bytes: int
    """With the batch-norm statistics."""
    fraction: float
    """Relative to its bytes with its own head."""

    def __str__(self) -> str:
        return (
            f"the reused head (convs and the teacher's classifier) stays in the student and enlarges it by "
            f"{self.parameters:,} parameters, {self.bytes:,} bytes, {self.fraction:.1%}"
        )


def enlargement(network: nn.Module) -> Enlargement | None:
    """None for a network with its own head. Weight deltas on it are not counted."""
    projector = getattr(network, CHILD, None)
    if projector is None:
        return None
    parts = [projector, network.get_submodule(projector.classifier)]
    parameters = sum(p.numel() for part in parts for p in part.parameters()) - projector.replaced[0]
    added = tensor_bytes(t for part in parts for t in part.state_dict().values())
    body = tensor_bytes(backbone_state(network, classifier_names(network)).values())
    own = body + projector.replaced[1]
    return Enlargement(parameters, added - projector.replaced[1], (body + added) / own - 1)


def as_map(network: nn.Module, final: Tensor) -> Tensor:
    """Output of ``forward_features`` → [B, S, H, W]; tokens [B, N, S] without prefix tokens, folded to their grid."""
    if final.ndim == 4:
        return final.movedim(-1, 1) if getattr(network, "output_fmt", "NCHW") == "NHWC" else final
    if final.ndim == 3:
        tokens = final[:, getattr(network, "num_prefix_tokens", 0) :]
        height, width = getattr(getattr(network, "patch_embed", None), "grid_size", None) or (1, 0)
        if height * width != tokens.shape[1]:
            height = width = round(tokens.shape[1] ** 0.5)
        if height * width == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (height, width))
    name = network.pretrained_cfg["architecture"]  # type: ignore[index]
    raise NetworkError(f"{name}: its features {tuple(final.shape)} are neither a map [B, C, H, W] nor tokens on a grid")
