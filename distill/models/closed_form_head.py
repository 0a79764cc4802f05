"""Classifiers that were fitted in closed form and are not linear in the features, as modules of a timm network.

``timm.create_model("closed_form_head", body="resnet18", head={"type": "random_ridge", …})`` creates such a network. The
folder of a network that a stream serves has this architecture, see :mod:`distill.models.closed_form_head_entry`.

Logits are computed in float64, as they were when the head was measured, and returned in the dtype of the features.

Shape suffixes: N images, D feature width, M random features, K classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augment.draws import Draws
from distill.deltas.sites import classifier_names
from distill.models.weights import NetworkError

ARCHITECTURE = "closed_form_head"
"""timm's entry point for networks with such a classifier."""


@lru_cache(maxsize=2)
def projection(width: int, random_width: int, seed: int) -> Tensor:
    """R [D, M] float64, standard normal numbers that follow from the seed.

    Args:
        width: D.
        random_width: M.
        seed: of the draws.

    Returns:
        The matrix, which is cached: do not change it.
    """
    draws = Draws(seed, 0, "head", torch.arange(width)).op("random_ridge")
    return draws.normal(0, (random_width,), torch.float64)


class RandomFeatureClassifier(nn.Module):
    """``relu(f R) Wᵀ``: features [N, D] → logits [N, K], with R from a seed.

    R is not part of the state: it is made again from the seed.

    Args:
        features: D.
        width: M.
        classes: K.
        seed: of R.

    Example:
        >>> import torch
        >>> from distill.models.closed_form_head import RandomFeatureClassifier
        >>> head = RandomFeatureClassifier(features=4, width=6, classes=3, seed=0)
        >>> [*head.state_dict()], list(head(torch.ones(2, 4)).shape)
        (['weight'], [2, 3])
    """

    weight: Tensor
    random: Tensor

    def __init__(self, features: int, width: int, classes: int, seed: int):
        super().__init__()
        self.sizes = {"features": features, "width": width, "classes": classes, "seed": seed}
        self.register_buffer("weight", torch.zeros(classes, width))
        self.register_buffer("random", projection(features, width, seed).clone(), persistent=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of :func:`make_head`, without the number of classes."""
        return {"type": "random_ridge", **{name: size for name, size in self.sizes.items() if name != "classes"}}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())

    def forward(self, features_ND: Tensor) -> Tensor:
        hidden_NM = (features_ND.double() @ self.random.double()).relu()
        return (hidden_NM @ self.weight.double().T).to(features_ND.dtype)


class MahalanobisClassifier(nn.Module):
    """``−(x − m_c)ᵀ C_c⁻¹ (x − m_c)``: features [N, D] → logits [N, K], with x = normalized f^p.

    Negative features, of which there is no power, count as zero.

    Args:
        features: D.
        classes: K.
        matrices: number of the C⁻¹: K, or 1 if all classes have the same.
        power: p; None: 1, also for negative features.

    Example:
        >>> import torch
        >>> from distill.models.closed_form_head import MahalanobisClassifier
        >>> head = MahalanobisClassifier(features=2, classes=2, matrices=1)
        >>> _ = head.means.copy_(torch.eye(2)), head.inverses.copy_(torch.eye(2))
        >>> head(torch.tensor([[4.0, 0.0]]))
        tensor([[-0., -2.]])
    """

    means: Tensor
    inverses: Tensor

    def __init__(self, features: int, classes: int, matrices: int, power: float | None = 0.5):
        super().__init__()
        self.sizes = {"features": features, "classes": classes, "matrices": matrices, "power": power}
        self.power = power
        self.register_buffer("means", torch.zeros(classes, features))
        self.register_buffer("inverses", torch.zeros(matrices, features, features))

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of :func:`make_head`, without the number of classes."""
        return {"type": "fecam", **{name: size for name, size in self.sizes.items() if name != "classes"}}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())

    def forward(self, features_ND: Tensor) -> Tensor:
        x_ND = features_ND.double()
        if self.power is not None:
            x_ND = x_ND.clamp(min=0) ** self.power
        x_ND = F.normalize(x_ND, dim=1)
        distances = []
        for mean_D, inverse_DD in zip(self.means.double(), self.inverses.expand(len(self.means), -1, -1)):
            rest_ND = x_ND - mean_D
            distances.append((rest_ND @ inverse_DD.double() * rest_ND).sum(1))
        return -torch.stack(distances, dim=1).to(features_ND.dtype)


ClosedFormClassifier = RandomFeatureClassifier | MahalanobisClassifier
_KINDS: dict[str, type[ClosedFormClassifier]] = {
    "random_ridge": RandomFeatureClassifier,
    "fecam": MahalanobisClassifier,
}


def make_head(settings: dict[str, Any], classes: int) -> ClosedFormClassifier:
    """A classifier without its numbers.

    Args:
        settings: its ``settings``.
        classes: K.
    """
    arguments = {name: value for name, value in settings.items() if name != "type"}
    return _KINDS[settings["type"]](classes=classes, **arguments)


def give_head(network: nn.Module, head: nn.Module, classes: int) -> None:
    """Make a module the classifier of a timm network, in place.

    Args:
        network: a timm model whose classifier is one linear layer, without deltas there.
        head: features [N, D] → logits [N, K].
        classes: K.

    Raises:
        NetworkError: the network's classifier is not one linear layer.
    """
    names = classifier_names(network)
    if len(names) != 1 or not isinstance(network.get_submodule(names[0]), nn.Linear):
        raise NetworkError(
            f"{network.pretrained_cfg['architecture']} has no classifier that is one linear layer, "  # type: ignore[index]
            "so a closed-form head cannot replace it"
        )
    network.set_submodule(names[0], head.to(next(network.parameters()).device).train(network.training))
    network.num_classes = classes  # type: ignore[assignment]


def closed_form(network: nn.Module) -> ClosedFormClassifier | None:
    """The classifier that :func:`give_head` gave a network; None if it has none, or timm created it with one."""
    if network.pretrained_cfg["architecture"] == ARCHITECTURE:  # type: ignore[index]
        return None
    return next((m for m in network.modules() if isinstance(m, ClosedFormClassifier)), None)
