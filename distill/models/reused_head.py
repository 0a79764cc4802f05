"""A network with another one's head: convs lead its last map to features that the other one's classifier reads.

``p = mean over places of P(F)``, ``z = W p + b``: F [B, S, H, W] is what the network's ``forward_features`` gives,
P the convs, p [B, width] in the space of the other network's pooled features, W and b its classifier, frozen.

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
"""What timm calls a network that is made with such a head, see ``reused_head_entry``."""
CHILD = "reused_head"
"""The convs' name in the network."""


class Projector(nn.Module):
    """The convs P: 1×1 to ``width / factor`` channels, 3×3, 1×1 to ``width``; batch norm after each, ReLU between.

    It stands in for the network's own pooling and head: ``forward_head`` and ``reset_classifier`` are put in the place
    of timm's.
    """

    def __init__(self, settings: ReusedHead, network: nn.Module, channels: int, classifier: str):
        super().__init__()
        self.settings, self.classifier = settings, classifier
        width, between = settings.width, max(1, settings.width // settings.factor)
        self.convs = nn.Sequential(
            nn.Conv2d(channels, between, 1, bias=False),
            nn.BatchNorm2d(between),
            nn.ReLU(),
            nn.Conv2d(between, between, 3, padding=1, bias=False),
            nn.BatchNorm2d(between),
            nn.ReLU(),
            nn.Conv2d(between, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        own = [*network.get_submodule(classifier).parameters()]
        self.replaced = sum(p.numel() for p in own), tensor_bytes(own)
        self._network = (network,)  # in a tuple, so that it does not become a child of its own child
        self._new_classifier(network.num_classes)  # type: ignore[arg-type]

    def forward_head(self, final: Tensor, pre_logits: bool = False) -> Tensor:
        """In the place of the network's: [B, width], or logits [B, K]."""
        (network,) = self._network
        pooled = self.convs(as_map(network, final)).mean((2, 3))
        return pooled if pre_logits else network.get_submodule(self.classifier)(pooled)

    def reset_classifier(self, num_classes: int, *unused: Any, **also_unused: Any) -> None:
        """In the place of the network's: a new classifier of that many classes."""
        self._network[0].num_classes = num_classes  # type: ignore[assignment]
        self._new_classifier(num_classes)

    def _new_classifier(self, num_classes: int) -> None:
        (network,) = self._network
        like = network.get_submodule(self.classifier).weight
        layer = nn.Linear(self.settings.width, num_classes, device=like.device, dtype=like.dtype)  # type: ignore[arg-type]
        network.set_submodule(self.classifier, layer)


def reuse_head(network: nn.Module, settings: ReusedHead) -> None:
    """Give a timm network such a head, in place; its classifier is as yet anybody's.

    Module names stay what they are, but for the new child ``reused_head``, which counts as part of the classifier: a
    delta file holds both as the head. ``pretrained_cfg`` says so.

    Raises:
        NetworkError: its classifier is not one linear layer, or its features are neither a map nor tokens on a grid.
    """
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    name = config["architecture"]
    if hasattr(network, CHILD):
        raise NetworkError(f"{name} has the head of another network already")
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
    """The head that :func:`reuse_head` gave a network; None if it has its own, or was made with it by timm."""
    projector = getattr(network, CHILD, None)
    made_with_it = network.pretrained_cfg["architecture"] == ARCHITECTURE  # type: ignore[index]
    return None if projector is None or made_with_it else projector.settings


@dataclass(frozen=True)
class Enlargement:
    """By how much a network with a reused head is larger than with its own."""

    parameters: int
    bytes: int
    """With the batch-norm statistics."""
    share: float
    """Of the bytes that it would have with its own head."""

    def __str__(self) -> str:
        return (
            f"the reused head (convs and the teacher's classifier) stays in the student and enlarges it by "
            f"{self.parameters:,} parameters, {self.bytes:,} bytes, {self.share:.1%}"
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
    """[B, S, H, W]: what ``forward_features`` gives, tokens [B, N, S] folded to their grid without those before it."""
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
    raise NetworkError(f"{name}: its features {tuple(final.shape)} are no map [B, C, H, W] and no tokens on a grid")
